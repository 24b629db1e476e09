#!/usr/bin/env bash
# The whole loop on this machine's CPU: makes .venv when it is missing, then runs `irpo run quickstart`.
# Arguments are overrides: tools/quickstart.sh seed=1 name=quickstart-1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

prepare_venv train,report
exec .venv/bin/irpo run quickstart "$@"
