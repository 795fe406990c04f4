"""Accuracy, convergence and time of configs/digits_deq.yaml, over three seeds.

python benchmarks/digits_deq.py
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from common import ROOT, write_result

from deqflow.train import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()

    began = time.perf_counter()
    runs = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            result = run(ROOT / "configs" / "digits_deq.yaml", Path(folder) / "run", overrides=[f"seed={seed}"])
        runs.append({"seed": seed, "train_seconds": round(result.seconds, 1), "selected_step": result.selected_step, **result.test})
    write_result(
        "digits_deq",
        {
            "mean_test_accuracy": statistics.mean(entry["accuracy"] for entry in runs),
            "max_residual_median": max(entry["residual_median"] for entry in runs),
            "max_train_seconds": max(entry["train_seconds"] for entry in runs),
            "runs": runs,
        },
        {"mean_test_accuracy": ">= 0.98", "max_residual_median": "<= 1e-2", "max_train_seconds": "< 90"},
        time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()
