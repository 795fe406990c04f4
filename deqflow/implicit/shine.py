"""The gradient that shares Broyden's estimate of the inverse."""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from deqflow.implicit.attach import attach, detach
from deqflow.implicit.broyden import Broyden, inverse_product
from deqflow.implicit.gmres import GMRES
from deqflow.implicit.gradient import Gradient, solve_frozen
from deqflow.implicit.loop import Request
from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Precision, Solver
from deqflow.implicit.trees import Map, Vectors, norm, over
from deqflow.registry import Range, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shine(Gradient):
    """The derivative by the inverse that `Broyden` has built up on its way to the solution.

        dz ≈ B⁻¹ ∂f,   B ≈ I - ∂f/∂z

    With no refinement it costs two products with the Jacobian. They measure the residual of Broyden's estimate and that of the identity
    (`JacobianFree`), and every sample takes the smaller one. Refinement improves the result by GMRES steps on what is left.

    Args:
      refine: number of products with the Jacobian that refine the result.
      precision: of the matrix products in the derivative of `f`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import deqflow
      >>> def solution(b):  # z = 0.1 z + b, whose derivative is 1 / 0.9
      ...     solver = deqflow.implicit.Broyden()
      ...     return deqflow.fixed_point(lambda z: 0.1 * z + b, jnp.zeros((1,)), solver=solver, gradient=Shine()).value[0]
      >>> print(f"{jax.grad(solution)(1.0):.4f}")
      1.1111

    Ramzi, Mannel, Bai, Starck, Ciuciu and Moreau, "SHINE: SHaring the INverse Estimate from the forward pass for bi-level optimization
    and implicit models", 2022.
    """

    solvers: ClassVar[tuple[type[Solver], ...]] = (Broyden,)

    refine: Annotated[int, Range(ge=0)] = 0
    precision: Precision = "highest"

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def solve(self, solver: Solver, f: Map, z0: Vectors, request: Request) -> tuple[Vectors, Stats]:
        solved = solve_frozen(solver, f, z0, request, keep=True)
        pairs = solved.state.pairs

        def apply(matvec: Map, b: Vectors, transpose: bool) -> Vectors:
            shared = inverse_product(pairs, b, transpose=transpose)
            left, left_plain = b - matvec(shared), b - matvec(b)
            closer = over(norm(left) < norm(left_plain), b)
            x, left = jnp.where(closer, shared, b), jnp.where(closer, left, left_plain)
            if self.refine:
                correction = GMRES(restart=self.refine, max_steps=self.refine, rtol=0.0)
                x = x + correction.product(matvec, left)
            return x

        def attached(z: Vectors) -> Vectors:
            return attach(
                lambda z: z - f(z),
                z,
                lambda matvec, b: apply(matvec, b, transpose=False),
                lambda matvec, b: apply(matvec, b, transpose=True),
            )

        with jax.default_matmul_precision(self.precision):
            return detach(solved.stats.failed, solved.value, attached), solved.stats
