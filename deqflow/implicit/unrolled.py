"""The derivative of the iteration itself."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from deqflow.implicit.attach import detach
from deqflow.implicit.gradient import Gradient, solve_frozen
from deqflow.implicit.loop import Request
from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Precision, Solver
from deqflow.implicit.trees import Map, Vectors, select


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unrolled(Gradient):
    """Backpropagation through the solver's steps, what implicit differentiation replaces.

    The exact derivative of the iterate that is returned, with respect to the initial guess too; it approaches that of the solution as
    the iteration converges. Memory grows with `solver.max_steps`, as the tape is laid out when compiling. The equation is solved twice:
    first without a tape, to know how many steps every sample takes and which samples fail, then on it. A failed sample takes no step
    there, as one infinite intermediate value would spoil the gradients that samples share.

    Args:
      checkpoint: what the tape holds: `none` everything; `every` the state before each step, whose inside is computed again in the
        backward pass; `sqrt` the state before each of about √max_steps groups of steps, at one more evaluation per step.
      precision: of the matrix products on the tape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import deqflow
      >>> def solution(a):
      ...     f = lambda z: 0.5 * (z + a / z)
      ...     return deqflow.fixed_point(f, jnp.ones((1,)), solver=deqflow.Picard(), gradient=Unrolled()).value[0]
      >>> print(f"{jax.grad(solution)(4.0):.4f}")
      0.2500

    Griewank and Walther, "Evaluating derivatives", 2008, chapter 12, on checkpoints.
    """

    through_steps: ClassVar[bool] = True

    checkpoint: Literal["none", "every", "sqrt"] = "none"
    precision: Precision = "highest"

    def solve(self, solver: Solver, f: Map, z0: Vectors, request: Request) -> tuple[Vectors, Stats]:
        solved = solve_frozen(solver, f, z0, request)
        count = jnp.where(solved.stats.failed, 0, solved.best_step)

        def step(state: Any, number: Int[Array, ""]) -> tuple[Any, None]:
            # A sample that has finished keeps its whole state: going on would divide by differences that have become zero.
            return select(number < count, solver.step(f, state), state), None

        def replayed(_: Vectors) -> Vectors:
            state = self._scan(step, solver.init(jnp.where(jnp.isfinite(z0), z0, 0)), solver.max_steps)
            return select(count > 0, solver.value(state).z, z0)

        with jax.default_matmul_precision(self.precision):
            return detach(solved.stats.failed, solved.value, replayed), solved.stats

    def _scan(self, step: Any, state: Any, length: int) -> Any:
        if self.checkpoint != "none":
            step = jax.checkpoint(step)
        if self.checkpoint != "sqrt":
            return lax.scan(step, state, jnp.arange(length))[0]
        inner = math.isqrt(length - 1) + 1
        outer = -(-length // inner)

        @jax.checkpoint
        def group(state: Any, first: Int[Array, ""]) -> tuple[Any, None]:
            return lax.scan(step, state, first + jnp.arange(inner))

        return lax.scan(group, state, inner * jnp.arange(outer))[0]
