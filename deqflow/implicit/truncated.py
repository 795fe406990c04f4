"""Gradients that truncate the Neumann series of the implicit one."""

import dataclasses
import functools
from typing import Annotated

import jax
from jax import lax

from deqflow.implicit.attach import attach, detach
from deqflow.implicit.gradient import Gradient, solve_frozen
from deqflow.implicit.loop import Request
from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Precision, Solver
from deqflow.implicit.trees import Map, Vectors
from deqflow.registry import Range, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class JacobianFree(Gradient):
    """The derivative of one application of the map: the inverse of `I - ∂f/∂z` is replaced by the identity.

        dz ≈ ∂f

    One product with no solve. Where `f` is a contraction strong enough, it is a direction of descent; its error is of the order of the
    contraction factor.

    Args:
      precision: of the matrix products in the derivative of `f`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import deqflow
      >>> def solution(b):  # z = 0.1 z + b, whose derivative is 1 / 0.9
      ...     return deqflow.fixed_point(lambda z: 0.1 * z + b, jnp.zeros((1,)), gradient=JacobianFree()).value[0]
      >>> print(f"{jax.grad(solution)(1.0):.4f}")
      1.0000

    Fung, Heaton, Li, McKenzie, Osher and Yin, "JFB: Jacobian-free backpropagation for implicit networks", 2022.
    """

    precision: Precision = "highest"

    def solve(self, solver: Solver, f: Map, z0: Vectors, request: Request) -> tuple[Vectors, Stats]:
        return _solve(0, self.precision, solver, f, z0, request)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TruncatedNeumann(Gradient):
    """The derivative by the first terms of the Neumann series.

        dz ≈ Σ_{i=0}^{steps} (∂f/∂z)^i ∂f

    Its error falls as the contraction factor of `f` to the power `steps + 1`; where the spectral radius of `∂f/∂z` is 1 or more, it
    grows instead.

    Args:
      steps: number of products with the Jacobian.
      precision: of the matrix products in the derivative of `f`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import deqflow
      >>> def solution(b):  # z = 0.1 z + b, whose derivative is 1 / 0.9
      ...     return deqflow.fixed_point(lambda z: 0.1 * z + b, jnp.zeros((1,)), gradient=TruncatedNeumann(steps=2)).value[0]
      >>> print(f"{jax.grad(solution)(1.0):.4f}")
      1.1100

    Geng, Guo, Chen, Li, Wei and Lin, "Is attention better than matrix decomposition?", 2021; Lorraine, Vicol and Duvenaud, "Optimizing
    millions of hyperparameters by implicit differentiation", 2020.
    """

    steps: Annotated[int, Range(ge=1)] = 5
    precision: Precision = "highest"

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def solve(self, solver: Solver, f: Map, z0: Vectors, request: Request) -> tuple[Vectors, Stats]:
        return _solve(self.steps, self.precision, solver, f, z0, request)


def _solve(steps: int, precision: str, solver: Solver, f: Map, z0: Vectors, request: Request) -> tuple[Vectors, Stats]:
    def series(matvec: Map, b: Vectors) -> Vectors:  # matvec is I - J
        return lax.fori_loop(0, steps, lambda _, x: x + (b - matvec(x)), b)

    solved = solve_frozen(solver, f, z0, request)
    with jax.default_matmul_precision(precision):
        attached = functools.partial(attach, lambda z: z - f(z), solve=series)
        return detach(solved.stats.failed, solved.value, attached), solved.stats
