"""How a solution is differentiated."""

import abc
import dataclasses
import functools
from typing import ClassVar

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from deqflow.implicit import loop
from deqflow.implicit.attach import attach, detach, freeze
from deqflow.implicit.bicgstab import BiCGStab
from deqflow.implicit.linear import LinearSolver
from deqflow.implicit.loop import Request
from deqflow.implicit.mixed import solve_in_two
from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Precision, Solver
from deqflow.implicit.trees import Map, Vectors


class Gradient(abc.ABC):
    """How the solution of `f(z) = z` is found such that it differentiates.

    Attributes:
      solvers: the solvers that it works with.
      through_steps: whether it differentiates the solver's own steps.
    """

    solvers: ClassVar[tuple[type[Solver], ...]] = (Solver,)
    through_steps: ClassVar[bool] = False

    @abc.abstractmethod
    def solve(self, solver: Solver, f: Map, z0: Vectors, request: Request) -> tuple[Vectors, Stats]:
        """Run `solver` on `f` from `z0` and return a value with this kind of derivative, and statistics without any.

        A failed sample gets a finite value and an exactly zero derivative.
        """

    def check(self, solver: Solver) -> None:
        """Raise `ValueError` unless this works with `solver`."""
        name = type(solver).__name__
        if not isinstance(solver, self.solvers):
            wanted = " or ".join(kind.__name__ for kind in self.solvers)
            raise ValueError(f"the gradient {type(self).__name__} works with the solver {wanted}, got {name}")
        if self.through_steps and not solver.differentiable_steps:
            raise ValueError(
                f"the gradient {type(self).__name__} differentiates the solver's steps, and those of {name} do not; use Implicit"
            )
        if self.through_steps and solver.bfloat16_until is not None:
            raise ValueError(
                f"the gradient {type(self).__name__} differentiates the solver's steps from the initial guess, and with bfloat16_until "
                "they begin elsewhere; leave that out, or use Implicit"
            )


SOLVED = "deqflow_solved"
"""The name of what a solve leaves behind, for policies of `jax.checkpoint`: a reverse pass to which it is saved solves nothing again."""


def solve_frozen(solver: Solver, f: Map, z0: Vectors, request: Request, *, keep: bool = False) -> loop.Solved:
    """`loop.solve` with no derivative, everything that `f` closes over held constant."""
    with jax.default_matmul_precision(solver.precision):
        z0 = lax.stop_gradient(z0)
        frozen = freeze(f, z0)
        if solver.bfloat16_until is not None:
            solved = solve_in_two(solver, solver.bfloat16_until, frozen, z0, request, keep=keep)
        else:
            solved = loop.solve(solver, frozen, z0, request, keep=keep)
        return checkpoint_name(solved, SOLVED)


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

    # A third of the memory of GMRES(20) and less of the time, in benchmarks/gradient_step.py.
    linear: LinearSolver = BiCGStab()
    precision: Precision = "highest"

    def solve(self, solver: Solver, f: Map, z0: Vectors, request: Request) -> tuple[Vectors, Stats]:
        solved = solve_frozen(solver, f, z0, request)
        with jax.default_matmul_precision(self.precision):
            attached = functools.partial(attach, lambda z: z - f(z), solve=self.linear.product)
            return detach(solved.stats.failed, solved.value, attached), solved.stats
