"""What a solve returns: the value and, for each sample, how it was reached."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Int

from deqflow.implicit.status import Status

T = TypeVar("T")


class ConvergenceError(RuntimeError):
    """Raised by `Solution.check` when a sample did not converge."""


class Stats(NamedTuple):
    """Per-sample statistics of a solve, of shape `(batch,)`, or scalars for a solve with `batched=False`.

    They are ordinary numbers without a derivative.

    Attributes:
      status: a `Status` as an integer.
      steps: solver steps taken until the sample stopped.
      evaluations: evaluations of the function (products with the matrix, for a linear solve) until the sample stopped.
      residual: `‖f(z) - z‖₂` at the returned value (`‖b - A x‖₂` for a linear solve); infinite where nothing finite was seen.
      relative_residual: `‖f(z) - z‖₂ / ‖f(z)‖₂` (`‖b - A x‖₂ / ‖b‖₂`).
      trace: the relative residual after every step, `(max_steps, batch)`, NaN once a sample has stopped; `None` unless it was asked for.
      states: the best iterates on the way, one array for each of the numbers of steps asked for; a `Solution` has them itself.
    """

    status: Int[Array, "*batch"]
    steps: Int[Array, "*batch"]
    evaluations: Int[Array, "*batch"]
    residual: Float[Array, "*batch"]
    relative_residual: Float[Array, "*batch"]
    trace: Float[Array, "steps *batch"] | None = None
    states: tuple[Any, ...] = ()

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether the tolerance was met."""
        return self.status == Status.CONVERGED

    @property
    def failed(self) -> Bool[Array, "*batch"]:
        """Whether the value is only a finite placeholder, whose gradient is zero."""
        return self.status >= Status.DIVERGED

    def unsolved(self) -> str:
        """What happened to how many samples and what to change; empty if all converged, or inside `jit`, where nobody knows."""
        if isinstance(self.status, Tracer):
            return ""
        counts = Counter(np.asarray(self.status).ravel().tolist())
        total = sum(counts.values())
        return ". ".join(
            f"{count} of {total} samples: {Status(code).message} ({Status(code).name}); {Status(code).remedy}"
            for code, count in sorted(counts.items())
            if code != Status.CONVERGED
        )

    def single(self) -> "Stats":
        """The statistics of the only sample, without the batch axis."""
        return jax.tree.map(lambda leaf: leaf[..., 0], self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution(Generic[T]):
    """A value with the statistics of the solve that found it; `value, stats = solution` unpacks it.

    Attributes:
      value: the solution, a pytree like the initial guess.
      stats: `Stats`, one entry per sample.
      aux: what the function returned beside its value there, with `has_aux=True`.
      states: for each of the `states` asked for, one application of the function to the best iterate after that many steps; it has the
        derivative of that application.
    """

    value: T
    stats: Stats
    aux: Any = None
    states: tuple[T, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter((self.value, self.stats))

    def check(self) -> T:
        """Return `value` if every sample converged.

        Inside `jit` this is a `checkify.debug_check`: it raises under `jax.experimental.checkify` and does nothing otherwise.

        Raises:
          ConvergenceError: naming what happened to how many samples and what to change.
        """
        if isinstance(self.stats.status, Tracer):
            checkify.debug_check(jnp.all(self.stats.converged), "deqflow: a sample did not converge")
        elif reasons := self.stats.unsolved():
            raise ConvergenceError(f"the solve did not converge. {reasons}")
        return self.value
