"""Test likelihoods of configs/checkerboard_realnvp.yaml and configs/digits_realnvp.yaml, the latter beside the best Gaussian mixture.

python benchmarks/digits_mixture.py     # first: the mixture
python benchmarks/realnvp.py
"""

import json
import tempfile
import time
from pathlib import Path

from common import RESULTS, ROOT, write_result

from deqflow.train import run


def train(name: str) -> dict[str, float]:
    """Train a config and return its numbers on the test split."""
    with tempfile.TemporaryDirectory() as folder:
        result = run(ROOT / "configs" / f"{name}.yaml", Path(folder) / "run")
    return {**result.test, "selected_step": result.selected_step or 0, "steps": result.step, "train_seconds": round(result.seconds, 1)}


def main() -> None:
    began = time.perf_counter()
    mixture = json.loads((RESULTS / "digits_mixture.json").read_text())["metrics"]["test_bits_per_dim"]
    checkerboard, digits = train("checkerboard_realnvp"), train("digits_realnvp")
    digits["mixture_bits_per_dim"] = mixture
    digits["better_than_mixture_by"] = mixture - digits["bits_per_dim"]
    write_result(
        "realnvp",
        {"checkerboard_realnvp": checkerboard, "digits_realnvp": digits},
        {"checkerboard_realnvp": {"nats": "<= 3.56"}, "digits_realnvp": {"better_than_mixture_by": ">= 0.03"}},
        time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()
