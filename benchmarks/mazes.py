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
from deqflow.tasks.figures import BLUE, GREEN, ORANGE, show_image, tidy
from deqflow.tasks.segmentation_figures import overlaid
from deqflow.train import run
from deqflow.train.directory import RunDirectory

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


def draw(rows: dict[int, list[dict[str, float]]], trained_steps: int, strip: list[tuple[int, np.ndarray, int]], path: Path) -> None:
    """The share of exact mazes and the residual against the budget, and below it how one large maze is solved."""
    plt.rcParams.update({"font.size": 9})
    figure = plt.figure(figsize=(8, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 10, height_ratios=(1.35, 1))
    names = {"exact": "share of mazes without a wrong pixel", "residual_median": "median relative residual"}
    for column, (name, label) in enumerate(names.items()):
        panel = figure.add_subplot(grid[0, 5 * column : 5 * column + 5])
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
        panel = figure.add_subplot(grid[1, 2 * column : 2 * column + 2])
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

    rows, strip = {}, []
    for size, (count, _) in SIZES.items():
        columns = Mazes(size=size, test_examples=count).split("test").columns
        x, y = columns["x"], columns["y"]
        rows[size] = [evaluate(solve, x, y, budget) for budget in BUDGETS]
        if size == max(SIZES):
            longest = int(y[:BATCH].sum(axis=(1, 2)).argmax())
            for budget in SHOWN:
                predicted = solve(x[:BATCH], budget)[0][longest]
                image = overlaid(x[longest], y[longest], predicted, (0.0, 1.0))
                strip.append((budget, image, int((predicted != y[longest]).sum())))
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
