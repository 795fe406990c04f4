"""A stack of equal blocks as a loop (Repeat, with and without remat) against one that is written out (Chain).

python benchmarks/stack.py

Residual blocks of two hidden layers of 64 on 512 points of the plane; the gradient of the mean log-determinant. Time of a step, temporary
memory and compile time at eight blocks, and the compile time of 32 blocks over that of four.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import write_result
from flax import nnx

from deqflow.flows import Bijector, Chain, Repeat, Residual
from deqflow.nn import LipschitzMLP

X = jnp.asarray(np.random.default_rng(0).uniform(-4, 4, (512, 2)), jnp.float32)


def block(rngs: nnx.Rngs) -> Bijector:
    return Residual(LipschitzMLP(2, width=64, depth=2, rngs=rngs), (2,))


def stack(kind: str, count: int) -> Bijector:
    if kind == "chain":
        rngs = nnx.Rngs(0)
        return Chain([block(rngs) for _ in range(count)])
    return Repeat(block, count, remat=kind == "repeat", rngs=nnx.Rngs(0))


def compiled(kind: str, count: int) -> tuple[Any, Any, float]:
    """The compiled gradient, its argument, and the seconds that tracing and compiling took."""
    graph, params, rest = nnx.split(stack(kind, count), nnx.Param, ..., graph=False)
    gradient = jax.jit(jax.grad(lambda params: nnx.merge(graph, params, rest).forward_and_log_det(X).log_det.mean()))
    start = time.perf_counter()
    program = gradient.lower(params).compile()
    return program, params, time.perf_counter() - start


def main() -> None:
    began = time.perf_counter()
    kinds = ("chain", "repeat", "repeat, no remat")
    programs = {kind: compiled(kind, 8) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(40):
        for kind, (program, params, _) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(params))
            seconds[kind].append(time.perf_counter() - start)
    metrics: dict[str, Any] = {
        kind: {
            "milliseconds": round(1e3 * statistics.median(seconds[kind]), 2),
            "temporary_megabytes": round(program.memory_analysis().temp_size_in_bytes / 1e6, 2),
            "compile_seconds": round(compile_seconds, 2),
        }
        for kind, (program, _, compile_seconds) in programs.items()
    }
    rounds = [(compiled("repeat", 4)[2], compiled("repeat", 32)[2]) for _ in range(3)]
    metrics["compile_32_over_4"] = round(statistics.median(many / few for few, many in rounds), 2)
    write_result("stack", metrics, {"compile_32_over_4": "at most 1.3"}, time.perf_counter() - began)


if __name__ == "__main__":
    main()
