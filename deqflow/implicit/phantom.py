"""The phantom gradient."""

import dataclasses
from typing import Annotated

import jax
from jax import lax

from deqflow.implicit.attach import detach
from deqflow.implicit.gradient import Gradient, solve_frozen
from deqflow.implicit.loop import Request
from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Precision, Solver
from deqflow.implicit.trees import Map, Vectors, select
from deqflow.registry import Range, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phantom(Gradient):
    """The derivative of a few damped steps of plain iteration that start at the solution.

        z_{k+1} = (1 - damping) z_k + damping f(z_k),   z_0 = z*  (constant),   dz ≈ dz_steps

    With damping it weighs the terms of the Neumann series less and less, and remains bounded where the plain series grows. The memory
    is that of `steps` applications of `f`.

    Args:
      steps: number of steps that are differentiated.
      damping: the fraction of the step to `f(z)` that is taken, in (0, 1].
      precision: of the matrix products in these steps.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import deqflow
      >>> def solution(b):  # z = 0.1 z + b, whose derivative is 1 / 0.9
      ...     return deqflow.fixed_point(lambda z: 0.1 * z + b, jnp.zeros((1,)), gradient=Phantom(steps=3, damping=1.0)).value[0]
      >>> print(f"{jax.grad(solution)(1.0):.4f}")
      1.1100

    Geng, Zhang, Bai, Wang and Lin, "On training implicit models", 2021.
    """

    steps: Annotated[int, Range(ge=1)] = 5
    damping: Annotated[float, Range(gt=0, le=1)] = 0.5
    precision: Precision = "highest"

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def solve(self, solver: Solver, f: Map, z0: Vectors, request: Request) -> tuple[Vectors, Stats]:
        solved = solve_frozen(solver, f, z0, request)

        def step(z: Vectors, _: None) -> tuple[Vectors, None]:
            moved = (1 - self.damping) * z + self.damping * f(z)
            return select(solved.stats.failed, z, moved), None  # which would only run away

        def attached(z: Vectors) -> Vectors:
            moved, _ = lax.scan(step, z, length=self.steps)
            return z + (moved - lax.stop_gradient(moved))  # the solution itself, with the derivative of the steps

        with jax.default_matmul_precision(self.precision):
            return detach(solved.stats.failed, solved.value, attached), solved.stats
