"""The memory benchmark: what unrolled, reversible, implicit and other gradients cost on one's own cell."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import numpy as np

from deqflow.bench.isolated import ChildError, Program, free_bytes
from deqflow.bench.methods import METHODS, check_method, pair
from deqflow.bench.problem import Problem, of_cell
from deqflow.implicit import Anderson, BiCGStab, Implicit, Picard, Solver
from deqflow.registry import UserError

_KNOWN = 1e-4  # with a larger relative residual, a gradient does not count as exact


class Record(TypedDict):
    """One row of the benchmark; `None` is what could not be measured.

    Attributes:
      method: one of `METHODS`.
      steps: the solver steps that were asked for.
      compiled_bytes: the memory that XLA plans for the gradient beside its arguments: temporaries and outputs.
      peak_bytes: the most memory that was in use while it was computed, above that of an idle process which already held the compiled
        program and its arguments. On the CPU that is the resident set, on an accelerator what the allocator counts.
      seconds: median time of the gradient, compilation excluded.
      gradient_error: relative error of the gradient, `‖g - g*‖₂ / ‖g*‖₂` over all parameters. `g*` is the implicit gradient at an
        equilibrium solved for as well as the type of the numbers allows, so that errors near its rounding, 1e-6 in float32, say nothing.
      status: `ok`; `ok, stopped at step n` where rounding left the solver nothing to gain, so that the seconds are those of n steps
        (except of unrolled methods, whose tape has a place for every step that was asked for); or what went wrong.
    """

    method: str
    steps: int
    compiled_bytes: int | None
    peak_bytes: int | None
    seconds: float | None
    gradient_error: float | None
    status: str


def memory(
    cell: Callable[..., Any],
    z: Any,
    x: Any,
    *,
    steps: Sequence[int] = (10, 100, 1000),
    methods: Sequence[str] = METHODS,
    solver: Solver = Picard(),
    limit: float | None = None,
    seconds: float = 10.0,
) -> list[Record]:
    """Memory, time and error of the gradient of a cell's equilibrium, by every method and number of solver steps.

        ∂ <v, z> / ∂(parameters, x),   z = f(z, x),   v random

    Every gradient is compiled here and run in a process of its own, so that what another has left behind is not measured. On an accelerator
    start this program with `XLA_PYTHON_CLIENT_PREALLOCATE=false`, or there is little memory left for those. `unrolled` and its checkpointed
    variants solve twice, as `deqflow.implicit.Unrolled` does, which costs time but no memory.

    Args:
      cell: `cell(z, x) -> z`, any function or Flax NNX module, treating every sample by itself.
      z: initial guess, a pytree of arrays with a leading batch axis.
      x: input, a pytree of arrays; parameters of a cell that is a plain function are part of it.
      steps: numbers of solver steps.
      methods: names out of `METHODS`.
      solver: takes the steps; its tolerances are set to zero.
      limit: bytes of memory; what XLA plans to exceed them is not run. By default what is free.
      seconds: how long a gradient is measured for, at least twice and at most eight times; the first time does not count.

    Returns:
      A record for each method and number of steps, in this order. A method that fails, or does not fit, is a record whose `status` says so.

    Raises:
      UserError: for an unknown method, or a number of steps below one.
      ValueError, TypeError: if the cell does not return what it takes, or `z` holds other than floating-point arrays.

    Example:
      >>> import jax.numpy as jnp
      >>> W, x = 0.5 * jnp.eye(4), jnp.ones((2, 4))
      >>> cell = lambda z, x: jnp.tanh(z @ x[0] + x[1])
      >>> (row,) = memory(cell, jnp.zeros((2, 4)), (W, x), steps=[20], methods=["implicit"])
      >>> row["status"], row["gradient_error"] < 1e-4
      ('ok', True)

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019, for the comparison with unrolling.
    """
    return list(records(of_cell(cell, z, x), steps=steps, methods=methods, solver=solver, limit=limit, seconds=seconds))


def records(
    problem: Problem,
    *,
    steps: Sequence[int] = (10, 100, 1000),
    methods: Sequence[str] = METHODS,
    solver: Solver = Picard(),
    limit: float | None = None,
    seconds: float = 10.0,
) -> Iterator[Record]:
    """`memory` of any problem, each record as soon as it is measured."""
    for method in methods:
        check_method(method)
    for count in steps:
        if count < 1:
            raise UserError(f"a number of solver steps must be at least 1, got {count}")
    exact = _exact(problem, limit)
    for method in methods:
        for count in steps:
            yield _measure(problem, method, count, solver, exact, limit, seconds)


_Exact = tuple[list[np.ndarray] | None, str]
"""The gradient that counts as exact, or why there is none."""


def _exact(problem: Problem, limit: float | None) -> _Exact:
    # Without a tolerance both solves go on until rounding, in whatever type, leaves them nothing to gain.
    gradient = Implicit(linear=BiCGStab(rtol=0.0, max_steps=1000))
    program = Program(problem.function(Anderson(rtol=0.0, max_steps=1000), gradient), problem.arguments)
    if reason := _too_large(program, limit):
        return None, reason
    try:
        leaves, _, failures, residual = program.run(0).outputs
    except ChildError as error:
        return None, str(error)
    if failures > 0 or not residual <= _KNOWN:
        return None, f"no equilibrium was found, relative residual {residual:.2g}"
    return leaves, ""


def _measure(problem: Problem, method: str, steps: int, solver: Solver, exact: _Exact, limit: float | None, seconds: float) -> Record:
    row = Record(method=method, steps=steps, compiled_bytes=None, peak_bytes=None, seconds=None, gradient_error=None, status="ok")
    try:
        program = Program(problem.function(*pair(method, steps, solver)), problem.arguments)
        row["compiled_bytes"] = program.bytes
        if reason := _too_large(program, limit):
            return {**row, "status": f"does not fit: {reason}"}
        measured = program.run(seconds)
    except Exception as error:  # whatever it is, the other rows are still worth having
        return {**row, "status": f"failed: {next(iter(str(error).splitlines()), type(error).__name__)}"}

    gradient, taken, failures, _ = measured.outputs
    reference, reason = exact
    error = math.nan if reference is None else _relative_error(gradient, reference)
    if failures > 0:
        row["status"] = f"diverged, {100 * failures:.3g} % of the samples"
    elif not all(np.isfinite(leaf).all() for leaf in gradient):
        row["status"] = "the gradient is not finite"
    elif taken < steps:
        row["status"] = f"ok, stopped at step {taken:.0f}"
    row["status"] += f", gradient error unknown: {reason}" if reason else ""
    row["peak_bytes"], row["seconds"] = measured.peak_bytes, measured.seconds
    row["gradient_error"] = error if math.isfinite(error) else None
    return row


def _too_large(program: Program, limit: float | None) -> str:
    """Why a program cannot be run, or nothing."""
    room = free_bytes() if limit is None else limit
    if program.bytes is None or room is None or program.bytes <= room:
        return ""
    there = "are free" if limit is None else "are allowed"
    return f"it needs {program.bytes / 2**20:,.0f} MiB, and {room / 2**20:,.0f} MiB {there}"


def _relative_error(gradient: list[np.ndarray], exact: list[np.ndarray]) -> float:
    def norm(leaves: list[np.ndarray]) -> float:
        return math.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in leaves))

    difference = norm([np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in zip(gradient, exact, strict=True)])
    return difference / (norm(exact) or 1.0)
