"""What the Jacobian penalty does to solver steps and accuracy: configs/digits_deq.yaml with growing weights, over some seeds.

python benchmarks/jacobian_penalty.py
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from common import RESULTS, ROOT, write_result

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from deqflow.train import run

WEIGHTS = (0.0, 0.1, 0.3, 1.0)


def train(weight: float, seed: int) -> dict[str, float]:
    """The test numbers of one run."""
    penalty = [f"model.training.jacobian.weight={weight}"] if weight else []
    with tempfile.TemporaryDirectory() as folder:
        result = run(ROOT / "configs" / "digits_deq.yaml", Path(folder) / "run", overrides=[f"seed={seed}", *penalty])
    return {"weight": weight, "seed": seed, **result.test}


def means(runs: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Over the seeds, for each weight."""
    names = ("accuracy", "solver_steps", "residual_median")
    return [
        {"weight": weight} | {name: statistics.mean(r[name] for r in runs if r["weight"] == weight) for name in names} for weight in WEIGHTS
    ]


def draw(runs: Sequence[dict[str, float]], path: Path) -> None:
    """Solver steps and accuracy against the weight."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    labels = [f"{weight:g}" for weight in WEIGHTS]
    for panel, name, title in zip(panels, ("solver_steps", "accuracy"), ("solver steps per test image", "test accuracy"), strict=True):
        for r in runs:
            panel.plot(WEIGHTS.index(r["weight"]), r[name], "o", mfc="none", color="0.6", ms=5)
        panel.plot([m[name] for m in means(runs)], "o-", color="#0072B2", lw=1.6)
        panel.set(title=title, xlabel="weight of the penalty", xticks=range(len(WEIGHTS)), xticklabels=labels)
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylim(0.98, 1.001)
    figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    began = time.perf_counter()
    runs = [train(weight, seed) for seed in range(arguments.seeds) for weight in WEIGHTS]
    draw(runs, RESULTS / "jacobian_penalty.png")
    without, *penalised = means(runs)
    metrics: dict[str, Any] = {
        "means": [without, *penalised],
        "steps without over steps with": {f"{m['weight']:g}": without["solver_steps"] / m["solver_steps"] for m in penalised},
        "accuracy lost": {f"{m['weight']:g}": without["accuracy"] - m["accuracy"] for m in penalised},
        "runs": runs,
    }
    expected = {"steps without over steps with": ">= 1.5 for a weight at which the accuracy lost is < 0.005"}
    write_result("jacobian_penalty", metrics, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
