#!/usr/bin/env bash
# The first command of the README: a story written backward from its ending, by the built-in model,
# on the CPU, without torch and, once installed, without a network.
#   bash scripts/story.sh ["an ending"]
. "$(dirname "$0")/environment.sh"
environment

backgpt sample --ending "${1:-and they lived happily ever after.}"
