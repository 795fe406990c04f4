"""What every solver of a linear system `A x = b` is; `A` is only ever applied."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Annotated, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from deqflow.implicit.solution import Solution, Stats
from deqflow.implicit.trees import Map, Vectors, accumulator, as_floating, norm, on_rows, rows
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


def relative(residual: Float[Array, " batch"], size: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """`residual / size`, 0 for no residual and the residual itself for no size."""
    return jnp.where(residual == 0, 0, residual / jnp.where(size > 0, size, 1))
