#!/usr/bin/env bash
# Format, lint, types and tests: makes .venv when it is missing. Arguments go to pytest: tools/test.sh -k loss
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

# What tests need of the system; where it cannot be installed, those tests are skipped and say so.
prepare_debian() {
    local missing
    mapfile -t missing < <(grep -v '^#' tools/debian_packages.txt | while read -r package; do
        dpkg -s "$package" >/dev/null 2>&1 || echo "$package"
    done)
    if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${missing[*]}" >&2
        { apt-get update -qq && apt-get install --yes -qq --no-install-recommends "${missing[@]}"; } >/dev/null ||
            echo "could not install ${missing[*]}" >&2
    fi
}

prepare_venv train,report,dev
prepare_debian
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
