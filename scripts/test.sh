#!/usr/bin/env bash
# The second command of the README: style, types, and every test, the slow ones too.
. "$(dirname "$0")/environment.sh"
environment dev

ruff check .
ruff format --check .
mypy
python -m pytest -m "slow or not slow" "$@"
