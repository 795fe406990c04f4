"""Residual against implicit flow at equal parameters on three densities of the plane: likelihood, and the time of a step.

python benchmarks/three_densities.py [--steps STEPS] [--seeds SEEDS] [--runs FOLDER]

The configs checkerboard_residual and checkerboard_implicit are trained on each density for as many steps as they say, or for STEPS, from
each of SEEDS seeds, which meet the same data. The equations of the latter are solved to 1e-4 in training, with a history of as many
columns as the plane has dimensions, and differentiated by their 2 x 2 matrices; what is tested is solved to rounding, as always. A step
is value and gradient of a batch in training mode, timed in alternating runs at the parameters found, since the equations of an implicit
flow take as many iterations as its parameters ask for.

Where both flows come near to the density itself, what is between them is less than 10,000 points of a test split can tell: they are
compared on ten times as many, the same for both, by the mean of the differences, with its standard error. What counts is the mean over the
seeds, with the standard error that they show, and of the ratios of times the median. The result is written anew after each run.
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
BATCH, REPEATS, POINTS = 512, 40, 100_000
SOLVES = ["model.solver={kind: anderson, history: 2, rtol: 1e-4}", "model.gradient={kind: implicit, linear: {kind: dense}}"]


def step_seconds(models: dict[str, Any], x: Any) -> dict[str, float]:
    """Medians of alternating runs, and of the ratios of neighbouring ones, which meet the same load of the machine."""
    steps, times = {}, {name: [] for name in models}
    for name, model in models.items():
        model.train()
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def loss(params: Any, rest: Any, x: Any, graph: Any = graph) -> Any:
            model: Any = nnx.merge(graph, params, rest)
            return -model.log_prob(x).mean()

        steps[name] = (jax.jit(jax.value_and_grad(loss)), params, rest)
        jax.block_until_ready(steps[name][0](params, rest, x))
    for _ in range(REPEATS):
        for name, (step, params, rest) in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(params, rest, x))
            times[name].append(time.perf_counter() - start)
    ratio = statistics.median(implicit / residual for implicit, residual in zip(times["implicit"], times["residual"], strict=True))
    return {**{name: statistics.median(values) for name, values in times.items()}, "ratio": ratio}


def log_likelihoods(model: Any, x: np.ndarray) -> np.ndarray:
    """Of every point."""
    model.eval()
    graph, state = nnx.split(model)

    @jax.jit
    def log_prob(state: Any, x: Any) -> Any:
        model: Any = nnx.merge(graph, state)
        return model.log_prob(x)

    return np.concatenate([np.asarray(log_prob(state, part), np.float64) for part in np.split(x, POINTS // 10_000)])


def compared(density: str, seed: int, shorter: list[str], runs: Path) -> dict[str, Any]:
    """Both flows on one density from one seed."""
    extra = [f"data.kind={density}", f"seed={seed}", *shorter]
    folders = {name: runs / f"{density}_{name}_{seed}" for name in ("residual", "implicit")}
    solves = {"residual": [], "implicit": SOLVES}
    found = {name: study(f"checkerboard_{name}", folder, overrides=[*extra, *solves[name]]) for name, folder in folders.items()}
    data = resolve("data", density)(test_examples=POINTS)
    x, points = (data.split(name).gather(np.arange(count))["x"] for name, count in (("train", BATCH), ("test", POINTS)))
    residual, implicit = (log_likelihoods(load(folder), points) for folder in folders.values())
    return {
        **found,
        "implicit_better_by": (implicit - residual).mean(),
        "standard_error": (implicit - residual).std() / POINTS**0.5,
        "step_seconds": step_seconds({name: load(folder) for name, folder in folders.items()}, x),
    }


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """What counts of several seeds."""
    better = [seed["implicit_better_by"] for seed in seeds]
    return {
        "implicit_better_by": statistics.mean(better),
        "standard_error": statistics.stdev(better) / len(better) ** 0.5 if len(better) > 1 else None,
        "step_ratio": statistics.median(seed["step_seconds"]["ratio"] for seed in seeds),
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
