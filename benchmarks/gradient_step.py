"""Time, memory and compile time of a solve with its gradient, beside jaxopt and TorchDEQ, and the overhead of our solvers.

python benchmarks/gradient_step.py

The dense cell is `tanh(z Wᵀ + x)` on 128 x 512 float32 numbers, W 0.95 times an orthogonal matrix; the convolutional ones are the cells
of the digits and the MNIST model, with one convolution on 8 x 8 pixels and two on 7 x 7. Everybody solves to a relative residual of 1e-5,
forward and backward, and returns the gradient with respect to W and x. Runs take turns, and medians count (of the overhead those over seven
processes as well); peers that are not installed are left out and said to be.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import write_result
from flax import nnx
from jax import lax

from deqflow.deq import Cell, ConvCell, ResidualConvCell
from deqflow.implicit import (
    GMRES,
    Anderson,
    BiCGStab,
    Broyden,
    Implicit,
    LinearFixedPoint,
    Neumann,
    Picard,
    Unrolled,
    fixed_point,
)

RTOL = 1e-5
BATCH, WIDTH = 128, 512
STEPS = 20  # of the overhead measurement


def dense() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    W = 0.95 * np.linalg.qr(generator.standard_normal((WIDTH, WIDTH)))[0]
    return W.astype(np.float32), generator.standard_normal((BATCH, WIDTH)).astype(np.float32)


def apply(W: jax.Array, z: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tanh(z @ W.T + x)


def step(solver: Any, gradient: Any) -> Callable[..., Any]:
    """The gradient of a loss of the dense cell's equilibrium, to be compiled."""

    def loss(W: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(fixed_point(lambda z: apply(W, z, x), jnp.zeros_like(x), solver=solver, gradient=gradient).value ** 2)

    return jax.grad(loss, (0, 1))


OURS = {
    "deqflow, default backward": (Anderson(rtol=RTOL), Implicit(linear=BiCGStab(rtol=RTOL))),
    "deqflow, GMRES backward": (Anderson(rtol=RTOL), Implicit(linear=GMRES(rtol=RTOL))),
    "deqflow, Anderson backward": (Anderson(rtol=RTOL), Implicit(linear=LinearFixedPoint(rtol=RTOL))),
    "deqflow, Picard and Neumann": (Picard(rtol=RTOL), Implicit(linear=Neumann(rtol=RTOL))),
    "deqflow, Broyden and BiCGStab": (Broyden(rtol=RTOL), Implicit(linear=BiCGStab(rtol=RTOL))),
}


def jaxopt_step(W: np.ndarray, x: np.ndarray) -> Callable[[], Any] | None:
    try:
        import jaxopt
        from jaxopt.linear_solve import solve_gmres
    except ImportError:
        return None
    # jaxopt's tolerance is absolute and over the whole batch: the same residual as rtol per sample, on average.
    solution = jax.jit(lambda W, x: fixed_point(lambda z: apply(W, z, x), jnp.zeros_like(x), solver=Anderson(rtol=RTOL)).value)(W, x)
    size = float(np.linalg.norm(solution))
    solver = jaxopt.AndersonAcceleration(
        lambda z, W, x: apply(W, z, x),
        history_size=5,
        tol=RTOL * size,
        ridge=1e-6,
        maxiter=100,
        implicit_diff=True,
        implicit_diff_solve=lambda matvec, b: solve_gmres(matvec, b, tol=RTOL),
    )
    run = jax.jit(jax.grad(lambda W, x: jnp.sum(solver.run(jnp.zeros_like(x), W, x).params ** 2), (0, 1)))
    return lambda: jax.block_until_ready(run(W, x))


def torchdeq_step(W: np.ndarray, x: np.ndarray) -> Callable[[], Any] | None:
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from torchdeq import get_deq  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    tW, tx = torch.tensor(W, requires_grad=True), torch.tensor(x, requires_grad=True)
    options = {
        "ift": True,
        "f_solver": "anderson",
        "b_solver": "anderson",
        "f_tol": RTOL,
        "b_tol": RTOL,
        "f_max_iter": 100,
        "b_max_iter": 100,
    }
    deq = get_deq(f_stop_mode="rel", b_stop_mode="rel", **options)

    def run() -> Any:
        tW.grad = tx.grad = None
        z = deq(lambda z: torch.tanh(z @ tW.T + tx), torch.zeros_like(tx))[0][-1]
        (z**2).sum().backward()
        return tW.grad, tx.grad

    return run


def turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(repeats: int) -> dict[str, Any]:
    W, x = dense()
    want = jax.jit(step(Anderson(rtol=1e-6, max_steps=100), Implicit(linear=GMRES(rtol=1e-6))))(W, x)
    runs: dict[str, Callable[[], Any]] = {}
    compiling: dict[str, float] = {}
    for name, (solver, gradient) in OURS.items():
        start = time.perf_counter()
        compiled = jax.jit(step(solver, gradient)).lower(W, x).compile()
        compiling[name] = time.perf_counter() - start
        runs[name] = lambda compiled=compiled: jax.block_until_ready(compiled(W, x))
    missing = []
    for name, make in {"jaxopt": jaxopt_step, "torchdeq": torchdeq_step}.items():
        run = make(W, x)
        if run is None:
            missing.append(name)
        else:
            runs[name] = run
    seconds = turns(runs, repeats)
    rows = {}
    for name, run in runs.items():
        error = max(float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)) for a, b in zip(run(), want, strict=True))
        rows[name] = {"seconds": seconds[name], "gradient_error": error}
        if name in compiling:
            rows[name]["compile_seconds"] = compiling[name]
    ours = seconds["deqflow, default backward"]
    ratios = {f"over {name}": ours / seconds[name] for name in ("jaxopt", "torchdeq") if name in seconds}
    return {"rows": rows, "default backward": ratios, "not installed": missing}


def overhead(repeats: int) -> dict[str, Any]:
    """Seconds of a solve of `STEPS` evaluations over those of as many bare evaluations, forward alone and with the gradient."""
    W, x = dense()

    def convolutional(cell: Cell, side: int, width: int) -> tuple[Any, Any, Any]:
        graph, state = nnx.split(cell)
        image = np.random.default_rng(0).standard_normal((128, side, side, width))
        return lambda p, x: nnx.merge(graph, p).prepare(x), state, jnp.asarray(image, jnp.float32)

    cells = {
        "dense": (lambda p, x: lambda z: apply(p, z, x), jnp.asarray(W), jnp.asarray(x)),
        "digits": convolutional(ConvCell(24, rngs=nnx.Rngs(0)), 8, 24),
        "MNIST": convolutional(ResidualConvCell(48, rngs=nnx.Rngs(0)), 7, 48),
    }
    solvers = {
        "Picard": Picard(),
        "Anderson(5)": Anderson(),
        "Picard, check_every=4": Picard(check_every=4),
        "Anderson(5), check_every=4": Anderson(check_every=4),
    }
    results: dict[str, Any] = {}
    for cell_name, (make, params, x) in cells.items():

        def bare(params: Any, x: Any, make: Any = make) -> Any:
            f = make(params, x)
            with jax.default_matmul_precision("highest"):
                return lax.fori_loop(0, STEPS, lambda _, z: f(z), jnp.zeros_like(x))

        runs = {"bare": jax.jit(bare)}
        for name, solver in solvers.items():
            solver = dataclasses.replace(solver, rtol=0.0, max_steps=STEPS)
            runs[name] = jax.jit(
                lambda params, x, make=make, solver=solver: fixed_point(make(params, x), jnp.zeros_like(x), solver=solver).value
            )
        timed = {name: lambda run=run, p=params, x=x: jax.block_until_ready(run(p, x)) for name, run in runs.items()}
        seconds = turns(timed, repeats)
        results[cell_name] = {name: seconds[name] / seconds["bare"] for name in solvers} | {"bare_milliseconds": 1e3 * seconds["bare"]}
    return results


def overhead_in_processes(repeats: int, processes: int) -> dict[str, Any]:
    """Medians of `overhead` over fresh processes: where one has its buffers decides up to a tenth, for as long as it lives."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = list(pool.map(overhead, [repeats] * processes))
    return {cell: {name: statistics.median(run[cell][name] for run in runs) for name in runs[0][cell]} for cell in runs[0]}


def memory() -> dict[str, Any]:
    """XLA's temporaries of the dense cell's gradient, in bytes."""
    W, x = dense()

    def temporaries(solver: Any, gradient: Any) -> int:
        analysis = jax.jit(step(solver, gradient)).lower(W, x).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    unrolled = temporaries(Picard(rtol=0.0, max_steps=100), Unrolled())
    pairs = {
        "Picard, BiCGStab": (Picard, BiCGStab(rtol=RTOL)),
        "Picard, Neumann": (Picard, Neumann(rtol=RTOL)),
        "Anderson(5), default": (Anderson, Implicit().linear),
        "Anderson(5), GMRES(20)": (Anderson, GMRES(restart=20)),
    }
    rows: dict[str, Any] = {"unrolled 100": {"bytes": unrolled}}
    for name, (kind, linear) in pairs.items():
        few, many = (temporaries(kind(rtol=RTOL, max_steps=steps), Implicit(linear=linear)) for steps in (10, 1000))
        rows[name] = {"bytes": many, "1000 steps over 10": many / few, "unrolled over it": unrolled / many}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    began = time.perf_counter()
    # First what is compared with nobody: the threads of other libraries go on spinning for a while.
    metrics = {"overhead": overhead_in_processes(arguments.repeats, 7), "dense cell": compare(arguments.repeats), "memory": memory()}
    expected = {
        "dense cell": {"over jaxopt": "<= 0.8", "over torchdeq": "<= 0.55", "compile_seconds": "<= 2"},
        "overhead": {"Picard": "<= 1.10", "Anderson(5)": "<= 1.5"},
        "memory": {"Picard": "1000 steps over 10 = 1, unrolled over it >= 30", "Anderson(5), default": "unrolled over it >= 10"},
    }
    write_result("gradient_step", metrics, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
