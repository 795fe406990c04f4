"""Dense factorisation, for small problems."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from deqflow.implicit.linear import LinearSolver
from deqflow.implicit.solution import Stats
from deqflow.implicit.status import Status
from deqflow.implicit.trees import Map, Vectors, accumulator, finite, matrix, norm, over, per_row, relative
from deqflow.registry import Range


def matrices(matvec: Map, like: Vectors) -> Float[Array, "batch n n"]:
    """The matrix of every row of `like`, by one product per dimension; in at least float32."""
    n = matrix(like).shape[1]
    units = jnp.eye(n, dtype=like.dtype).reshape(n, *like.shape[1:])
    columns = jax.vmap(lambda e: matrix(matvec(per_row(like, e, like.dtype))))(units)
    return jnp.moveaxis(columns, 0, 2).astype(accumulator(like.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(LinearSolver):
    """The exact solution by LU factorisation of every sample's own matrix.

    The matrix of n x n numbers per sample is made by n products. For small problems, and as a reference for the other linear solvers.
    A singular matrix is reported as stagnated where the residual is above the tolerance.

    Args:
      max_size: the largest dimension n of a sample that is accepted.
      atol: absolute tolerance, which decides the status alone.
      rtol: relative tolerance, likewise.
      max_steps: not used.

    Raises:
      ValueError: when solving for more than `max_size` dimensions.

    Example:
      >>> import jax.numpy as jnp
      >>> A = jnp.array([[2.0, 1.0], [0.0, 3.0]])
      >>> print(Dense().solve(lambda v: A @ v, jnp.array([3.0, 6.0]), batched=False).value)
      [0.5 2. ]
    """

    max_size: Annotated[int, Range(ge=1)] = 1024

    def solve_rows(self, matvec: Map, b: Vectors, *, tolerance: Float[Array, " batch"] | None = None) -> tuple[Vectors, Stats]:
        n = matrix(b).shape[1]
        if n > self.max_size:
            raise ValueError(
                f"Dense would form a matrix of {n} x {n} numbers per sample, more than max_size={self.max_size}; "
                "use GMRES or BiCGStab, or raise max_size"
            )
        size = norm(b)
        A = matrices(matvec, b)
        right = matrix(b).astype(A.dtype)
        x = jnp.linalg.solve(A, right[:, :, None])[:, :, 0]
        usable = finite(x) & (size > 0)
        x = jnp.where(over(usable, x), x, 0)
        residual = jnp.where(usable, norm(right - jnp.einsum("bij,bj->bi", A, x, precision="highest")), size)
        sound = finite(A) | (size == 0)
        status = jnp.select([residual <= self.goal(b, tolerance), ~sound], [Status.CONVERGED, Status.DIVERGED], Status.STAGNATED)
        count = per_row(b, n, jnp.int32)
        x = x.astype(b.dtype).reshape(b.shape)
        return x, Stats(status.astype(jnp.int32), jnp.ones_like(count), count, residual, relative(residual, size))
