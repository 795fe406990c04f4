"""How a solution is differentiated."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from deqflow.implicit import loop
from deqflow.implicit.attach import attach, freeze
from deqflow.implicit.gmres import GMRES
from deqflow.implicit.linear import LinearSolver
from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Precision, Solver
from deqflow.implicit.trees import Map, Vectors


class Gradient(abc.ABC):
    """How the solution of `f(z) = z` is found such that it differentiates."""

    @abc.abstractmethod
    def solve(self, solver: Solver, f: Map, z0: Vectors, *, budget: Int[Array, ""] | int | None, trace: bool) -> tuple[Vectors, Stats]:
        """Run `solver` on `f` from `z0` and return a value with this kind of derivative, and statistics without any.

        A failed sample gets a finite value and an exactly zero derivative.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implicit(Gradient):
    """The exact derivative at the solution, by one linear solve.

        dz = (I - ∂f/∂z)⁻¹ ∂f

    whatever the solver did to get there, with memory that does not grow with its steps. Reverse mode solves with the transposed matrix
    `(I - ∂f/∂z)ᵀ`; nothing requires `f` to be a contraction. Differentiates in forward and reverse mode to any order.

    Args:
      linear: the linear solver.
      precision: of the matrix products in the derivative of `f`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import deqflow
      >>> def solution(a):
      ...     return deqflow.fixed_point(lambda z: 0.5 * (z + a / z), jnp.ones((1,)), gradient=Implicit()).value[0]
      >>> print(f"{jax.grad(solution)(4.0):.4f}")
      0.2500

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019.
    """

    linear: LinearSolver = GMRES()
    precision: Precision = "highest"

    def solve(self, solver: Solver, f: Map, z0: Vectors, *, budget: Int[Array, ""] | int | None, trace: bool) -> tuple[Vectors, Stats]:
        with jax.default_matmul_precision(solver.precision):
            z0 = lax.stop_gradient(z0)
            z, stats = loop.solve(solver, freeze(f, z0), z0, budget=budget, trace=trace)
        # Linearise failed samples at a finite point, and cut them off behind it: masking the loss alone would leave 0 · NaN.
        z = jnp.where(jnp.isfinite(z), z, 0)
        with jax.default_matmul_precision(self.precision):
            attached = attach(lambda z: f(z) - z, z, self.linear)
        return jnp.where(stats.failed[:, None], z, attached), stats
