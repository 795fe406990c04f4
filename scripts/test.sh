#!/usr/bin/env bash
# Runs the whole test suite; arguments go to pytest.
#
#   scripts/test.sh [-k anderson ...]
#   PYTHON=python3.12 DEQFLOW_VENV=.venv-3.12 scripts/test.sh      the suite on another Python, in its own environment
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare test
exec "$venv/bin/python" -m pytest -n logical --maxprocesses 8 "$@"
