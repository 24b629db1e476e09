#!/usr/bin/env bash
# Format, lint, types and tests: makes .venv when it is missing. Arguments go to pytest: tools/test.sh -k loss
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

prepare_venv train,report,dev
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
