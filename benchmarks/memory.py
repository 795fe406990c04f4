"""What implicit differentiation saves: memory, time and error of a gradient by every method, against the number of solver steps.

python benchmarks/memory.py

The dense cell is `tanh(z Wᵀ + x)` on 128 x 512 float32 numbers, W 0.95 times an orthogonal matrix; the convolutional one is the cell of
the digits model on 128 x 8 x 8 x 24 numbers. Both are solved by plain iteration. `bare scan` is backpropagation through the same iteration
in a `jax.lax.scan`, with nothing of deqflow in it, by which the rows of `unrolled` are to be judged.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import write_result
from flax import nnx
from jax import lax

from deqflow.bench import Record, of_cell, records
from deqflow.bench.figure import draw
from deqflow.bench.isolated import Program
from deqflow.deq import ConvCell

BATCH, WIDTH = 128, 512
IMAGES = (128, 8, 8, 24)
STEPS = (10, 100, 1000)


def dense() -> tuple[Callable[..., Any], Any, Any]:
    generator = np.random.default_rng(0)
    W = 0.95 * np.linalg.qr(generator.standard_normal((WIDTH, WIDTH)))[0]
    x = generator.standard_normal((BATCH, WIDTH))
    return lambda z, x: jnp.tanh(z @ x[0].T + x[1]), jnp.zeros((BATCH, WIDTH)), (jnp.float32(W), jnp.float32(x))


def convolutional() -> tuple[Callable[..., Any], Any, Any]:
    x = jnp.float32(np.random.default_rng(0).standard_normal(IMAGES))
    return ConvCell(IMAGES[-1], groups=8, rngs=nnx.Rngs(0)), jnp.zeros(IMAGES), x


CELLS = {"dense cell": dense, "convolutional cell": convolutional}


def bare_scan(cell: Callable[..., Any], z: Any, x: Any, steps: int, seconds: float) -> dict[str, Any]:
    """Memory and time of the gradient through so many plain iterations."""
    graph, params = nnx.split(cell) if isinstance(cell, nnx.Module) else (None, {})

    def loss(trained: Any, z: Any) -> Any:
        params, x = trained
        with jax.default_matmul_precision("highest"):
            here = nnx.merge(graph, params) if graph is not None else cell
            f = here.prepare(x) if isinstance(here, ConvCell) else lambda z: here(z, x)
            return jnp.sum(lax.scan(lambda z, _: (f(z), None), z, length=steps)[0])

    program = Program(lambda *arguments: jax.tree.leaves(jax.grad(loss)(*arguments)), ((params, x), z))
    measured = program.run(seconds)
    return {"compiled_bytes": program.bytes, "peak_bytes": measured.peak_bytes, "seconds": measured.seconds}


def measure(cell: Callable[..., Any], z: Any, x: Any, seconds: float) -> tuple[list[Record], dict[str, Any]]:
    rows = []
    for row in records(of_cell(cell, z, x), steps=STEPS, seconds=seconds):
        print(row, flush=True)
        rows.append(row)
    by = {(row["method"], row["steps"]): row for row in rows}
    implicit, unrolled, bare = by["implicit", 100], by["unrolled", 100], bare_scan(cell, z, x, 100, seconds)
    return rows, {
        "implicit, compiled bytes, 1000 steps over 10": by["implicit", 1000]["compiled_bytes"] / by["implicit", 10]["compiled_bytes"],
        "implicit over unrolled, measured bytes, 100 steps": implicit["peak_bytes"] / unrolled["peak_bytes"],
        "implicit over bare scan, measured bytes, 100 steps": implicit["peak_bytes"] / bare["peak_bytes"],
        "gradient error of implicit": {str(steps): by["implicit", steps]["gradient_error"] for steps in STEPS},
        "bare scan, 100 steps": bare,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for how long each gradient is measured, twice at least")
    arguments = parser.parse_args()
    began = time.perf_counter()
    studies, metrics = {}, {}
    for title, make in CELLS.items():
        studies[title], metrics[title] = measure(*make(), arguments.seconds)
    expected = {
        "implicit, compiled bytes, 1000 steps over 10": "<= 1.02",
        "implicit over unrolled, measured bytes, 100 steps": "<= 0.1 for the convolutional cell",
        "gradient error of implicit": "<= 1e-4 where the solver has converged",
    }
    path = write_result("memory", metrics, expected, time.perf_counter() - began)
    draw(studies).savefig(path.with_suffix(".png"), dpi=200)


if __name__ == "__main__":
    main()
