"""What every solver of `f(z) = z` is: three small methods over one explicit state."""

import abc
import dataclasses
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from jaxtyping import Array, Bool, Int

from deqflow.implicit.trees import Map, Vectors
from deqflow.registry import Range, check_ranges

Precision = Literal["default", "high", "highest"]
"""How matrix products are computed on accelerators: float32 is truncated to TF32 or bfloat16 unless it says `highest`."""


class Iterate(NamedTuple):
    """The point a solver evaluated last.

    Attributes:
      z: the point.
      f: the value of the function there.
      evaluations: how many evaluations of the function each sample has used so far.
      residual: `f - z`, of a solver that keeps it.
    """

    z: Vectors
    f: Vectors
    evaluations: Int[Array, " batch"]
    residual: Vectors | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solver(abc.ABC):
    """An iteration for `f(z) = z`, described by `init`, `step` and `value` over one explicit state.

    States are arrays with a row per sample, of any shape, and a solver must treat every row by itself. When to stop, which iterate is
    best, the step budget and the statistics are the business of the loop that drives it, `deqflow.implicit.loop.solve`.

    Attributes:
      atol: absolute tolerance. A sample has converged when `‖f(z) - z‖₂ <= atol + rtol ‖f(z)‖₂`.
      rtol: relative tolerance.
      max_steps: the largest number of steps, fixed when compiling; `budget` lowers it at run time.
      check_every: the residual is looked at after every so many steps. Between them nothing is normed, compared or, on several devices,
        exchanged; in return a sample takes up to `check_every - 1` steps too many, and only the iterates looked at can be returned.
      precision: how the matrix products inside `f` are computed while solving.
      bfloat16_until: solve with the operands of matrix products and convolutions rounded to bfloat16 until the relative residual is
        this small, or half of the steps are taken, and finish without; a trace is of the second part. Rounding leaves about 1e-3.
      differentiable_steps: whether `step` differentiates in reverse mode, so that it may be unrolled.
    """

    differentiable_steps: ClassVar[bool] = True

    atol: Annotated[float, Range(ge=0)] = 0.0
    rtol: Annotated[float, Range(ge=0)] = 1e-4
    max_steps: Annotated[int, Range(ge=1)] = 50
    check_every: Annotated[int, Range(ge=1)] = 1
    precision: Precision = "highest"
    bfloat16_until: Annotated[float, Range(gt=0)] | None = None

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    @abc.abstractmethod
    def init(self, z0: Vectors) -> Any:
        """The state before the first evaluation of `f`, which `step` makes at `z0`."""

    @abc.abstractmethod
    def step(self, f: Map, state: Any) -> Any:
        """Propose the next point and evaluate `f` there."""

    @abc.abstractmethod
    def value(self, state: Any) -> Iterate:
        """The point evaluated last."""

    def restart(self, state: Any, z: Vectors, rows: Bool[Array, " batch"]) -> Any:
        """`state` with these `rows` as `init` would make them of `z`: their next step evaluates there, the one after is a plain one.

        For a solver that remembers earlier steps. One that does not would only repeat what led it here; it leaves this as it is, and its
        rows are never put back.
        """
        return state

    @property
    def restarts(self) -> bool:
        """Whether rows that are stuck are put back to their best iterates, by a `restart` of the solver's own."""
        return type(self).restart is not Solver.restart
