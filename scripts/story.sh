#!/usr/bin/env bash
# The first command of the README: train a small model on the built-in corpus (two or three
# minutes, no network once installed), then write a story backward from its ending.
#   bash scripts/story.sh ["an ending"]
. "$(dirname "$0")/environment.sh"
environment train

ending="${1:-and they lived happily ever after.}"
backgpt prepare builtin --out data/builtin --vocab-size 2048 >&2
backgpt train --data data/builtin --out runs/first --preset nano --batch-size 8 --epochs 2.5 >&2
backgpt sample --model runs/first --ending "$ending"
