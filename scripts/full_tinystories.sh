#!/usr/bin/env bash
# The `seed` model on the whole of TinyStories: one GPU, the Hugging Face hub, one command.
#   bash scripts/full_tinystories.sh [epochs] [more flags of backgpt train]
# Stopped, it goes on where it was when it is given again. docs/training.md says what to expect.
. "$(dirname "$0")/environment.sh"
environment train

epochs="${1:-7}"
[ $# -eq 0 ] || shift
backgpt prepare tinystories --out data/tinystories
backgpt train --data data/tinystories --out runs/tinystories --preset seed --epochs "$epochs" \
    --batch-size 64 --grad-accum-steps 2 --warmup-steps 100 --log-every 20 \
    --eval-every 2000 --save-every 1000 "$@"
backgpt sample --model runs/tinystories --ending "and they lived happily ever after."
