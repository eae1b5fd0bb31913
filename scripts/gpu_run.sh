#!/usr/bin/env bash
# 15 to 30 minutes on one GPU, in calls of under ten: pretrain `base`, tune `stories` and `backchat`, compare.
# The machine is reached by sending it a folder and a command; docs/training.md tells the story.
#
#   at home    bash scripts/gpu_run.sh pack DATA OUT [--tokenizer FILE] [--peer smolgpt=PATH]
#   there      bash call-1/code/scripts/gpu_run.sh go call-1 --out HOME [--minutes 9]
#   at home    bash scripts/gpu_run.sh unpack FOLDER HOME/*
#              bash scripts/gpu_run.sh status FOLDER
#   and, where the checkout travels along, its built-in weights stay behind:
#              bash scripts/gpu_run.sh aside FOLDER; pack ... --beside-checkout; bash scripts/gpu_run.sh restore FOLDER
#   there      bash scripts/gpu_run.sh go call-1 --out HOME
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
models="$here/../src/backgpt/models"
python="${PYTHON:-python3}"
command="${1:-help}"
[ $# -eq 0 ] || shift
case "$command" in
    pack) exec "$python" "$here/gpu/pack.py" "$@" ;;
    go | status) exec "$python" -u "$here/gpu/go.py" "$command" "$@" ;;
    unpack) exec "$python" "$here/gpu/weights.py" "$@" ;;
    aside) mkdir -p "$1" && mv "$models" "$1/models" ;;
    restore) mv "$1/models" "$models" ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
