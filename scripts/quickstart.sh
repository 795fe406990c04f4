#!/usr/bin/env bash
# Trains a deep equilibrium classifier on handwritten digits: on a fresh machine it needs git and Python >= 3.11, nothing else.
#
#   scripts/quickstart.sh [key=value ...]      e.g. scripts/quickstart.sh train.steps=200
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare train
echo "deqflow train configs/digits_deq.yaml $*" >&2 # JAX takes seconds to load, and says nothing meanwhile
exec "$venv/bin/deqflow" train configs/digits_deq.yaml "$@"
