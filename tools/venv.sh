# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: makes .venv in the checkout, and installs this package with the extras named in $1
# (for example "train,report") at the versions of constraints.txt. Does nothing when that is done already.
#
# PYTHON names the interpreter that makes .venv (default: python3); it must be 3.10 or newer.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

prepare_venv() {
    local extras=$1 stamp wanted
    stamp=".venv/installed-$extras"
    if [ ! -x .venv/bin/python ]; then
        local python=${PYTHON:-python3}
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$python: is missing or older than 3.10. Set PYTHON to a newer one, for example PYTHON=python3.11 $0" >&2
            exit 2
        fi
        "$python" -m venv .venv || {
            echo "$python: cannot make a virtual environment here; on Debian and Ubuntu install the package python3-venv" >&2
            exit 2
        }
    fi
    wanted=$(cat pyproject.toml constraints.txt | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing irpo-nemo[$extras] into .venv; the first time takes a few minutes" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
        echo "$wanted" >"$stamp"
    fi
}
