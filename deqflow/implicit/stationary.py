"""Linear systems solved as fixed points."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from deqflow.implicit import loop
from deqflow.implicit.anderson import Anderson
from deqflow.implicit.linear import LinearSolver, widened
from deqflow.implicit.picard import Picard
from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Solver
from deqflow.implicit.status import Status
from deqflow.implicit.trees import Map, Vectors, norm, over, relative


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearFixedPoint(LinearSolver):
    """The linear system as a fixed point, solved by any solver of fixed points.

        x = x + (b - A x)

    The backward pass of most deep equilibrium models, `w = Jᵀ w + g`. It asks of A, which is `I - J` there, what the solver asks of a
    map: `Picard` needs a contraction, `Anderson` and `Broyden` mostly do not.

    Args:
      solver: the iteration; of its own, tolerances, step limit and `bfloat16_until` are not used.
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: the largest number of the solver's steps.

    Example:
      >>> import jax.numpy as jnp
      >>> A = jnp.array([[1.0, 0.5], [0.0, 0.8]])
      >>> print(jnp.round(LinearFixedPoint().solve(lambda v: A @ v, jnp.array([2.0, 1.6]), batched=False).value, 4))
      [1. 2.]

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019.
    """

    solver: Solver = Anderson()

    def solve_rows(self, matvec: Map, b: Vectors, *, tolerance: Float[Array, " batch"] | None = None) -> tuple[Vectors, Stats]:
        return _iterate(self, self.solver, matvec, b, tolerance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neumann(LinearSolver):
    """The Neumann series, summed until its next term is within the tolerance.

        A⁻¹ b = Σ_k (I - A)^k b

    It converges where the spectral radius of `I - A` is below 1, at the rate of that radius, with two states of memory.

    Args:
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: the largest number of terms.

    Example:
      >>> import jax.numpy as jnp
      >>> A = jnp.array([[1.0, 0.5], [0.0, 0.8]])
      >>> print(jnp.round(Neumann().solve(lambda v: A @ v, jnp.array([2.0, 1.6]), batched=False).value, 4))
      [1. 2.]
    """

    def solve_rows(self, matvec: Map, b: Vectors, *, tolerance: Float[Array, " batch"] | None = None) -> tuple[Vectors, Stats]:
        return _iterate(self, Picard(), matvec, b, tolerance)


def _iterate(
    linear: LinearSolver, solver: Solver, matvec: Map, b: Vectors, tolerance: Float[Array, " batch"] | None
) -> tuple[Vectors, Stats]:
    solver = dataclasses.replace(solver, max_steps=linear.max_steps)
    size, goal = norm(b), linear.goal(b, tolerance)
    apply, right = widened(matvec, b)
    x, stats, *_ = loop.solve(solver, lambda x: x + (right - apply(x)), jnp.zeros_like(right), tolerance=goal)
    # Nothing was asked of a row of zeros, whatever its matrix; and the loop measures the residual against x + (b - A x), not b.
    done = size <= goal
    stats = stats._replace(
        status=jnp.where(done, jnp.int32(Status.CONVERGED), stats.status),
        steps=jnp.where(done, 0, stats.steps),
        evaluations=jnp.where(done, 0, stats.evaluations),
        residual=jnp.where(done, size, stats.residual),
        relative_residual=relative(jnp.where(done, size, stats.residual), size),
    )
    return jnp.where(over(done, x), 0, x).astype(b.dtype), stats
