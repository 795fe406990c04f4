"""Residual against implicit flow at equal parameters on three densities of the plane: likelihood, and the time of a step.

python benchmarks/three_densities.py [--steps STEPS] [--seeds SEEDS] [--runs FOLDER]

The configs checkerboard_residual and checkerboard_implicit are trained on each density for as many steps as they say, or for STEPS, from
each of SEEDS seeds, which meet the same data. The equations of the latter are solved to 1e-4 in training, with a history of as many
columns as the plane has dimensions, and differentiated by their 2 x 2 matrices; what is tested is solved to rounding, as always. A step
is value and gradient of a batch in training mode, timed in alternating runs at the parameters found, since the equations of an implicit
flow take as many iterations as its parameters ask for. What counts is the mean over the seeds, beside which is its standard error, and of
the ratios of times the median. The result is written anew after each run.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import study, write_result
from flax import nnx

from deqflow.registry import resolve
from deqflow.train import load

DENSITIES = ("eight_gaussians", "pinwheel", "checkerboard")
BATCH, REPEATS = 512, 20
SOLVES = ["model.solver={kind: anderson, history: 2, rtol: 1e-4}", "model.gradient={kind: implicit, linear: {kind: dense}}"]


def step_seconds(models: dict[str, Any], x: Any) -> dict[str, float]:
    """Medians of alternating runs."""
    steps, times = {}, {name: [] for name in models}
    for name, model in models.items():
        model.train()
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params: Any, rest: Any, x: Any, graph: Any = graph) -> Any:
            model: Any = nnx.merge(graph, params, rest)
            return -model.log_prob(x).mean()

        steps[name] = (jax.jit(jax.value_and_grad(loss)), params, rest)
    for _ in range(REPEATS + 1):
        for name, (step, params, rest) in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(params, rest, x))
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def compared(density: str, seed: int, shorter: list[str], runs: Path) -> dict[str, Any]:
    """Both flows on one density from one seed."""
    extra = [f"data.kind={density}", f"seed={seed}", *shorter]
    folders = {name: runs / f"{density}_{name}_{seed}" for name in ("residual", "implicit")}
    solves = {"residual": [], "implicit": SOLVES}
    found = {name: study(f"checkerboard_{name}", folder, overrides=[*extra, *solves[name]]) for name, folder in folders.items()}
    x = resolve("data", density)().split("train").gather(np.arange(BATCH))["x"]
    return {**found, "step_seconds": step_seconds({name: load(folder) for name, folder in folders.items()}, x)}


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """What counts of several seeds."""
    better = [seed["residual"]["nats"] - seed["implicit"]["nats"] for seed in seeds]
    return {
        "implicit_better_by": statistics.mean(better),
        "implicit_better_by_error": statistics.stdev(better) / len(better) ** 0.5 if len(better) > 1 else None,
        "step_ratio": statistics.median(seed["step_seconds"]["implicit"] / seed["step_seconds"]["residual"] for seed in seeds),
        "seeds": seeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of training, for both; as in the configs by default")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--runs", type=Path, help="where the run directories are kept; a temporary folder by default")
    arguments = parser.parse_args()
    began = time.perf_counter()
    cut = arguments.steps
    shorter = [] if cut is None else [f"train.{name}={cut}" for name in ("steps", "eval_every", "checkpoint_every")]
    rows: dict[str, list[dict[str, Any]]] = {density: [] for density in DENSITIES}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.seeds):
            for density in DENSITIES:
                rows[density].append(compared(density, seed, shorter, arguments.runs or Path(temporary)))
                metrics = {name: summary(seeds) for name, seeds in rows.items() if seeds}
                expected = {"implicit_better_by": ">= 0", "step_ratio": "<= 1.4"}
                write_result("three_densities", metrics, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
