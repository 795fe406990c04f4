"""What every solver of a linear system `A x = b` is; `A` is only ever applied."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Annotated, TypeVar

from deqflow.implicit.solution import Solution, Stats
from deqflow.implicit.trees import Map, Vectors, as_floating, on_rows, rows
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
    def solve_rows(self, matvec: Map, b: Vectors) -> tuple[Vectors, Stats]:
        """`solve` for a matrix with one system per row; a zero row of `b` gives an exactly zero row."""
