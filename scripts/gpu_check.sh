#!/usr/bin/env bash
# Runs what needs a GPU, tests and benchmarks, in under ten minutes; the results go to benchmarks/results/gpu/.
#
#   scripts/gpu_check.sh
set -euo pipefail
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q .; then
  echo "There is no NVIDIA GPU here that nvidia-smi can see: run this on a machine that has one." >&2
  exit 1
fi
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare test
python=$venv/bin/python
# Tests compare with the CPU; benchmarks start processes that need memory of the GPU too.
export JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false
finds_gpu() { "$python" -c 'import jax; jax.devices("cuda")' 2>/dev/null; }
if ! finds_gpu; then
  install "jax[cuda13]==$("$python" -c 'import jax; print(jax.__version__)')"
  finds_gpu || fail "JAX does not find the GPU: is the driver new enough for CUDA 13? (nvidia-smi shows its version)"
fi

failed=()
step() {
  local name=$1 left=$((570 - SECONDS))
  shift
  echo
  echo "== $name"
  if [[ $left -le 10 ]]; then
    echo "== $name: left out, the rest has taken $SECONDS s"
    failed+=("$name")
  elif timeout "$left" "$@"; then
    echo "== $name: passed ($SECONDS s so far)"
  else
    echo "== $name: FAILED ($SECONDS s so far)"
    failed+=("$name")
  fi
}

SECONDS=0 # the installation does not count
step tests "$python" -m pytest -q -m gpu tests/test_gpu.py --durations=10
step "training, digits" "$python" benchmarks/digits_deq.py --seeds 1
step "gradient step" "$python" benchmarks/gradient_step.py --repeats 5
step "trainer overhead" "$python" benchmarks/trainer_overhead.py --repeats 4
step memory "$python" benchmarks/memory.py --seconds 1

if [[ ${#failed[@]} -gt 0 ]]; then
  echo "Failed: ${failed[*]}"
  exit 1
fi
