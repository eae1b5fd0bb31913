# Sourced by the other scripts: make .venv once, with the pinned set, and use it.
#   environment [EXTRA]    the extra of backgpt to install, none without one
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

environment() {
    local python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "backgpt needs Python 3.11 or newer; $python is older or missing: set PYTHON" >&2
        exit 2
    fi
    if [ ! -x .venv/bin/python ]; then
        "$python" -m venv .venv
    fi
    . .venv/bin/activate
    local backgpt="backgpt${1:+[$1]}"
    local stamp=".venv/installed-${1:-plain}"
    local sources=(pyproject.toml constraints.txt CMakeLists.txt native)
    # Without its link to this folder it was installed by hand, as a copy of the code.
    local link=".venv/lib/*/site-packages/_editable_skbc_backgpt.pth"
    local compilers # the native engine was built with them, or left out without one
    compilers="$(command -v c++ g++ clang++ || true)"
    if [ ! -e "$stamp" ] || ! compgen -G "$link" >/dev/null ||
        [ "$(cat "$stamp")" != "$compilers" ] ||
        [ -n "$(find "${sources[@]}" -newer "$stamp" -print -quit)" ]; then
        echo "installing $backgpt into .venv (once)" >&2
        python -m pip install --quiet --constraint constraints.txt --editable ".${1:+[$1]}"
        printf "%s\n" "$compilers" >"$stamp"
    fi
}
