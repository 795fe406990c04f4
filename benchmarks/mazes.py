"""Accuracy against test-time solver steps of configs/mazes_deq.yaml, on mazes of the trained size and on larger ones.

python benchmarks/mazes.py

The trained model is evaluated with growing step budgets. Nothing in it depends on the size of a maze, but what happens at one end of a
corridor takes steps to reach the other.
"""

import argparse
import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from common import RESULTS, ROOT, write_result
from flax import nnx

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from deqflow import load
from deqflow.data.mazes import Mazes
from deqflow.models.deq_segmenter import DEQSegmenter
from deqflow.runs.directory import RunDirectory
from deqflow.tasks.figures import BLUE, GREEN, ORANGE, show_image, tidy
from deqflow.tasks.segmentation_figures import overlaid
from deqflow.train import run

TRAINED = 5  # cells along a side, as in the config
SIZES = {5: (1000, BLUE), 9: (500, GREEN), 13: (200, ORANGE)}  # number of test mazes and colour of each
BUDGETS = (1, 2, 5, 10, 20, 40, 80, 160, 320)
SHOWN = (5, 10, 20, 40, 80)  # budgets of the picture of one maze
BATCH = 100


def evaluator(model: DEQSegmenter) -> Any:
    """Predictions, residuals and steps of mazes for a step budget, which is traced: one compilation serves all."""
    layer = model.deq
    layer.eval_solver = dataclasses.replace(layer.eval_solver or layer.solver, max_steps=max(BUDGETS))
    graph, state = nnx.split(model)

    @jax.jit
    def solve(state: nnx.State, x: jax.Array, budget: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = nnx.merge(graph, state, copy=True)
        value, stats = model.solve(x, budget=budget)
        return model.readout(value).argmax(axis=-1), stats.relative_residual, stats.steps

    return lambda x, budget: [np.asarray(part) for part in solve(state, jnp.asarray(x), jnp.int32(budget))]


def evaluate(solve: Any, x: np.ndarray, y: np.ndarray, budget: int) -> dict[str, float]:
    parts = [solve(x[start : start + BATCH], budget) for start in range(0, len(x), BATCH)]
    predicted, residual, steps = (np.concatenate(column) for column in zip(*parts, strict=True))
    right = predicted == y
    return {
        "budget": budget,
        "exact": float(right.all(axis=(1, 2)).mean()),
        "pixel_accuracy": float(right.mean()),
        "residual_median": float(np.median(residual)),
        "steps": float(steps.mean()),
    }


def forming(solve: Any, x: np.ndarray, y: np.ndarray) -> list[tuple[int, np.ndarray, int]]:
    """One maze after each of the budgets shown, and its wrong pixels: of those solved at last the one most wrong in the middle."""
    predicted = [solve(x, budget)[0] for budget in SHOWN]
    wrong = np.array([(one != y).sum(axis=(1, 2)) for one in predicted])
    chosen = int(np.where(wrong[-1] == 0, wrong[len(SHOWN) // 2], -1).argmax())
    pictures = [overlaid(x[chosen], y[chosen], one[chosen], (0.0, 1.0)) for one in predicted]
    return [(budget, image, int(n)) for budget, image, n in zip(SHOWN, pictures, wrong[:, chosen], strict=True)]


def draw(rows: dict[int, list[dict[str, float]]], trained_steps: int, strip: list[tuple[int, np.ndarray, int]], path: Path) -> None:
    """The share of exact mazes and the residual against the budget, and below it how one large maze is solved."""
    plt.rcParams.update({"font.size": 9})
    figure = plt.figure(figsize=(8, 4.7), layout="constrained")
    above, below = (figure.add_subfigure(part) for part in figure.add_gridspec(2, 1, height_ratios=(1.6, 1)))
    names = {"exact": "share of mazes without a wrong pixel", "residual_median": "median relative residual"}
    for column, (name, label) in enumerate(names.items()):
        panel = above.add_subplot(1, 2, column + 1)
        for size, (_, colour) in SIZES.items():
            own = " (trained on)" if size == TRAINED else ""
            values = [row[name] for row in rows[size]]
            panel.plot(BUDGETS, values, "o-", color=colour, lw=1.6, ms=4, label=f"{size} x {size} cells{own}")
        panel.axvline(trained_steps, color="0.6", ls="--", lw=1, label="steps in training")
        panel.set(xscale="log", xlabel="solver steps at test time, at most", ylabel=label)
        panel.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        panel.minorticks_off()
        tidy(panel)
        if name == "exact":
            panel.legend(frameon=False, fontsize="small", loc="upper left")
            panel.set_ylim(-0.03, 1.03)
        else:
            panel.set_yscale("log")
    for column, (budget, image, wrong) in enumerate(strip):
        panel = below.add_subplot(1, len(strip), column + 1)
        show_image(panel, image, 0, 255)
        panel.set_title(f"{budget} steps: " + (f"{wrong} wrong" if wrong else "solved"), fontsize="small")
    figure.savefig(path, dpi=200)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run directory: of a finished run, which is not repeated, or where to keep the new one")
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        where = arguments.run or Path(folder) / "run"
        result = run(ROOT / "configs" / "mazes_deq.yaml", where, resume=where.exists())
        model, done = load(where), RunDirectory(where).result()
    assert done is not None
    assert isinstance(model, DEQSegmenter)
    trained_steps = model.deq.solver.max_steps
    solve = evaluator(model)

    rows = {}
    for size, (count, _) in SIZES.items():
        columns = Mazes(size=size, test_examples=count).split("test").columns
        x, y = columns["x"], columns["y"]
        rows[size] = [evaluate(solve, x, y, budget) for budget in BUDGETS]
    columns = Mazes(size=max(SIZES), test_examples=SIZES[max(SIZES)][0]).split("test").columns
    strip = forming(solve, columns["x"][:BATCH], columns["y"][:BATCH])
    draw(rows, trained_steps, strip, RESULTS / "mazes.png")
    at = {size: {int(row["budget"]): row["exact"] for row in rows[size]} for size in rows}
    most = max(BUDGETS)
    metrics = {
        "test": result.test,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        "train_seconds": round(done["seconds"], 1),
        "exact on the trained size": at[TRAINED][most],
        "exact on larger mazes, most steps over those of training": {
            str(size): {"at most": at[size][most], "as in training": at[size][trained_steps]} for size in SIZES if size != TRAINED
        },
        "sizes": {str(size): rows[size] for size in rows},
    }
    expected = {
        "exact on the trained size": ">= 0.99",
        "exact on larger mazes, most steps over those of training": "more with more steps than in training",
    }
    write_result("mazes", metrics, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
