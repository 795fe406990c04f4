"""What a `DEQ` layer costs in a training step beyond the cell evaluations and vector-Jacobian products that it performs.

python benchmarks/layer_overhead.py

Forward and backward through the layer in training mode, batches of 128, in the cells of configs/digits_deq.yaml, configs/mnist_deq.yaml and
configs/fashion_mnist_deq.yaml at their start: 24, 32 and 48 channels, with whose square the work of an evaluation grows. They are timed
over the same numbers of bare evaluations and products, one after the other in a loop, with the one product that gives the gradient of the
parameters and the input. Both solves, forward and backward, take 20 steps of the method named. The two take turns in one process, and the
medians over seven processes count.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import ROOT, write_result
from flax import nnx
from gradient_step import turns
from jax import lax

from deqflow.config import load
from deqflow.deq import DEQ, Cell
from deqflow.implicit import Anderson, Implicit, LinearFixedPoint, LinearSolver, Picard

CONFIGS = ("digits_deq", "mnist_deq", "fashion_mnist_deq")
SOLVERS = {"Picard": Picard(), "Anderson(5)": Anderson()}
BATCH, STEPS = 128, 20
SIDES = {"digits_deq": 8, "mnist_deq": 7, "fashion_mnist_deq": 7}  # of the grid of the equilibrium


def cell_of(name: str) -> tuple[Cell, jax.Array]:
    """The cell of a config as it starts, and an input for it."""
    config = load(ROOT / "configs" / f"{name}.yaml").model
    width, side = config.arguments["width"], SIDES[name]
    model: Any = config.build(input_shape=(28, 28, 1) if side == 7 else (8, 8, 1), classes=10, levels=256, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).standard_normal((BATCH, side, side, width))
    return model.deq.cell, jnp.asarray(image, jnp.float32)


def measure(repeats: int) -> dict[str, Any]:
    """The overhead of every cell and solver."""
    results: dict[str, Any] = {}
    for name in CONFIGS:
        cell, x = cell_of(name)
        cotangent = jax.random.normal(jax.random.key(0), x.shape)
        for kind, solver in SOLVERS.items():
            solver = dataclasses.replace(solver, rtol=0.0, max_steps=STEPS)
            linear = LinearFixedPoint(solver=solver, rtol=0.0, max_steps=STEPS)
            layer = DEQ(cell, solver, Implicit(linear=linear))
            results.setdefault(name, {})[kind] = overhead(layer, cell, linear, x, cotangent, repeats)
    return results


def overhead(layer: DEQ, cell: Cell, linear: LinearSolver, x: jax.Array, cotangent: jax.Array, repeats: int) -> dict[str, float]:
    """The time of one training step through the layer, and over that of what it evaluates."""
    layer.train()
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    cell_graph, cell_params, cell_rest = nnx.split(cell, nnx.Param, ...)

    def loss(params: nnx.State, x: jax.Array) -> jax.Array:
        return jnp.vdot(nnx.merge(graph, params, rest, copy=True)(x), cotangent)

    def solution(params: nnx.State, x: jax.Array) -> Any:
        return nnx.merge(graph, params, rest, copy=True).solve(x)

    z, stats = jax.jit(solution)(params, x)
    _, pull = jax.vjp(cell.prepare(x), z)
    solved = linear.solve(lambda v: v - pull(v)[0], cotangent, batched=True)
    evaluations, products = (int(s.evaluations.max()) for s in (stats, solved.stats))

    def f(params: nnx.State, x: jax.Array) -> Any:
        return nnx.merge(cell_graph, params, cell_rest, copy=True).prepare(x)

    def bare(params: nnx.State, x: jax.Array) -> Any:
        with jax.default_matmul_precision("highest"):
            once = f(params, x)
            z = lax.fori_loop(0, evaluations, lambda _, z: once(z), jnp.zeros_like(x))
            _, pull = jax.vjp(once, z)
            w = lax.fori_loop(0, products, lambda _, w: pull(w)[0], cotangent)
            return jax.vjp(lambda params, x: f(params, x)(z), params, x)[1](w)

    runs = {"layer": (jax.jit(jax.grad(loss, (0, 1))), params), "bare": (jax.jit(bare), cell_params)}
    seconds = turns({name: lambda run=run, p=p: jax.block_until_ready(run(p, x)) for name, (run, p) in runs.items()}, repeats)
    return {
        "ratio": seconds["layer"] / seconds["bare"],
        "layer_milliseconds": 1e3 * seconds["layer"],
        "evaluations": evaluations,
        "products": products,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--processes", type=int, default=7)
    arguments = parser.parse_args()
    began = time.perf_counter()
    # Where one process has its buffers decides up to a tenth, for as long as it lives.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = list(pool.map(measure, [arguments.repeats] * arguments.processes))
    metrics = {
        name: {
            kind: {key: statistics.median(run[name][kind][key] for run in runs) for key in runs[0][name][kind]}
            | {
                "smallest_ratio": min(run[name][kind]["ratio"] for run in runs),
                "largest_ratio": max(run[name][kind]["ratio"] for run in runs),
            }
            for kind in SOLVERS
        }
        for name in CONFIGS
    }
    write_result("layer_overhead", metrics, {"Picard": "ratio <= 1.15", "Anderson(5)": "ratio <= 1.5"}, time.perf_counter() - began)


if __name__ == "__main__":
    main()
