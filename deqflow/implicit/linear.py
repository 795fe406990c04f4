"""What every solver of a linear system `A x = b` is; `A` is only ever applied."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Annotated, NamedTuple, TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deqflow.implicit.solution import Solution, Stats
from deqflow.implicit.status import Status
from deqflow.implicit.trees import Map, Vectors, accumulator, as_floating, finite, norm, on_rows, per_row, relative, rows, select
from deqflow.registry import Range, check_ranges

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSolver(abc.ABC):
    """A matrix-free method for `A x = b`, one system per sample.

    Attributes:
      atol: absolute tolerance. A sample has converged when `‖b - A x‖₂ <= atol + rtol ‖b‖₂`.
      rtol: relative tolerance.
      max_steps: the largest number of products with `A`.
    """

    atol: Annotated[float, Range(ge=0)] = 0.0
    rtol: Annotated[float, Range(ge=0)] = 1e-6
    max_steps: Annotated[int, Range(ge=1)] = 100

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def solve(self, matvec: Callable[[T], T], b: T, *, batched: bool = True) -> Solution[T]:
        """Solve `matvec(x) = b` from `x = 0`.

        Args:
          matvec: a linear function from pytrees like `b` to pytrees like `b`; with `batched` it must act on every sample by itself.
          b: right-hand side, a pytree of floating-point arrays; with `batched` every leaf has a leading batch axis.
          batched: whether there is one system per entry of the leading axis, or a single one.

        Returns:
          The solution and its statistics; `x, stats = ...` unpacks them.
        """
        b = as_floating(b, "b")
        flat, split = rows(b, batched)
        x, stats = self.solve_rows(on_rows(matvec, b, batched, "the value of matvec"), flat)
        return Solution(split(x), stats if batched else stats.single())

    @abc.abstractmethod
    def solve_rows(self, matvec: Map, b: Vectors, *, tolerance: Float[Array, " batch"] | None = None) -> tuple[Vectors, Stats]:
        """`solve` for a matrix with one system per row; a zero row of `b` gives an exactly zero row.

        Args:
          matvec: a linear function that treats every row by itself.
          b: right-hand sides.
          tolerance: the residual at which each row has converged, instead of what `atol` and `rtol` make of it.
        """

    def product(self, matvec: Map, b: Vectors) -> Vectors:
        """`A⁻¹ b` alone."""
        return self.solve_rows(matvec, b)[0]

    def goal(self, b: Vectors, tolerance: Float[Array, " batch"] | None) -> Float[Array, " batch"]:
        """The residual at which each row of `b` has converged."""
        return self.atol + self.rtol * norm(b) if tolerance is None else tolerance


def widened(matvec: Map, b: Vectors) -> tuple[Map, Vectors]:
    """`matvec` and `b` for a method that keeps its own vectors in at least float32."""
    wide = accumulator(b.dtype)
    return lambda v: matvec(v.astype(b.dtype)).astype(wide), b.astype(wide)


class Cycle(NamedTuple):
    """What a method did between two restarts.

    Attributes:
      correction: what is added to x.
      residual: what is left of `b - A x` then.
      steps: the steps taken.
      evaluations: the products that they took.
    """

    correction: Vectors
    residual: Vectors
    steps: Int[Array, " batch"]
    evaluations: Int[Array, " batch"]


class _Restarts(NamedTuple):
    x: Vectors
    residual: Vectors
    status: Int[Array, " batch"]
    steps: Int[Array, " batch"]
    evaluations: Int[Array, " batch"]


_RUNNING = -1


def restarted(
    cycle: Callable[[Vectors, Bool[Array, " batch"], Int[Array, " batch"]], Cycle],
    b: Vectors,
    goal: Float[Array, " batch"],
    max_evaluations: int,
) -> tuple[Vectors, Stats]:
    """Solve `A x = b` from zero by cycles, each of which begins anew at the residual that the one before has left.

    A row stops once its residual is within the goal, its products are spent, or a cycle has gained less than one part in a hundred,
    which will not be followed by one that gains more. A cycle that does harm is left out.

    Args:
      cycle: given the residual, the rows that are still to be solved and the products each of them has left, what it does to them.
      b: right-hand sides, in at least float32.
      goal: the residual at which each row has converged.
      max_evaluations: the largest number of products that a row may use.
    """
    size = norm(b)

    def advance(c: _Restarts) -> _Restarts:
        running, before = c.status == _RUNNING, norm(c.residual)
        new = cycle(c.residual, running, max_evaluations - c.evaluations)
        x, after = c.x + new.correction, norm(new.residual)
        usable = running & jnp.isfinite(after) & finite(x) & (after <= before)
        evaluations = c.evaluations + jnp.where(running, new.evaluations, 0)
        status = jnp.select(
            [usable & (after <= goal), ~jnp.isfinite(before), ~usable | (after > 0.99 * before), evaluations >= max_evaluations],
            [Status.CONVERGED, Status.DIVERGED, Status.STAGNATED, Status.STEP_LIMIT],
            _RUNNING,
        )
        return _Restarts(
            x=select(usable, x, c.x),
            residual=select(usable, new.residual, c.residual),
            status=jnp.where(running, status, c.status).astype(jnp.int32),
            steps=c.steps + jnp.where(running, new.steps, 0),
            evaluations=evaluations,
        )

    zero = per_row(b, 0, jnp.int32)
    done = jnp.where(size <= goal, Status.CONVERGED, _RUNNING).astype(jnp.int32)
    end = lax.while_loop(lambda c: jnp.any(c.status == _RUNNING), advance, _Restarts(jnp.zeros_like(b), b, done, zero, zero))
    residual = norm(end.residual)
    return end.x, Stats(end.status, end.steps, end.evaluations, residual, relative(residual, size))
