"""Residual against implicit flow at equal parameters on three densities of the plane: likelihood, and the time of a step.

python benchmarks/three_densities.py [--steps STEPS] [--runs FOLDER]

The configs checkerboard_residual and checkerboard_implicit are trained on each density for as many steps as they say, or for STEPS, the
latter's equations solved to 1e-4 in training and their derivatives to 1e-3; what is tested is solved to rounding, as always. A step
is value and gradient of a batch in training mode, timed in alternating runs at the parameters found, since the equations of an implicit
flow take as many iterations as its parameters ask for. The result is written anew after each density.
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
TOLERANCES = ["model.solver={kind: anderson, rtol: 1e-4}", "model.gradient={kind: implicit, linear: {kind: bicgstab, rtol: 1e-3}}"]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of training, for both; as in the configs by default")
    parser.add_argument("--runs", type=Path, help="where the run directories are kept; a temporary folder by default")
    arguments = parser.parse_args()
    began = time.perf_counter()
    cut = arguments.steps
    shorter = [] if cut is None else [f"train.{name}={cut}" for name in ("steps", "eval_every", "checkpoint_every")]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        for density in DENSITIES:
            folders = {name: runs / f"{density}_{name}" for name in ("residual", "implicit")}
            extra = {"residual": [f"data.kind={density}", *shorter], "implicit": [f"data.kind={density}", *shorter, *TOLERANCES]}
            found = {name: study(f"checkerboard_{name}", folder, overrides=extra[name]) for name, folder in folders.items()}
            x = resolve("data", density)().split("train").gather(np.arange(BATCH))["x"]
            seconds = step_seconds({name: load(folder) for name, folder in folders.items()}, x)
            rows[density] = {
                **found,
                "implicit_better_by": found["residual"]["nats"] - found["implicit"]["nats"],
                "step_seconds": seconds,
                "step_ratio": seconds["implicit"] / seconds["residual"],
            }
            expected = {"implicit_better_by": ">= 0", "step_ratio": "<= 1.4"}
            write_result("three_densities", rows, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
