"""Generalised minimal residuals."""

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deqflow.implicit.arnoldi import expand, first_row
from deqflow.implicit.linear import Cycle, LinearSolver, restarted, widened
from deqflow.implicit.solution import Stats
from deqflow.implicit.trees import Map, Vectors, combine, norm, per_row, per_sample
from deqflow.registry import Range


class _Arnoldi(NamedTuple):
    taken: Int[Array, ""]
    basis: Float[Array, "batch m+1 *n"]
    hessenberg: Float[Array, "batch m m+1"]  # row j holds column j of the Hessenberg matrix
    null: Float[Array, "batch m+1"]  # the vector that the Hessenberg matrix annihilates from the left, beginning with 1
    columns: Int[Array, " batch"]  # how many columns each sample has used
    active: Bool[Array, " batch"]  # whether a sample still extends its basis


@dataclasses.dataclass(frozen=True, kw_only=True)
class GMRES(LinearSolver):
    """Restarted generalised minimal residuals, one Krylov space per sample.

        x_j = argmin ‖b - A x‖₂  over  x in span{b, A b, ..., A^{j-1} b}

    An Arnoldi basis, orthogonalised twice in at least float32, of at most `restart + 1` states is kept per sample. Needs no transpose
    and no contraction: any non-singular `A` is solved when `restart` suffices.

    In benchmarks/solvers.py it takes less than half of the time of `jax.scipy.sparse.linalg.gmres`, which solves the batch as one system,
    so that samples are not independent, and of lineax's under `vmap`.

    Args:
      restart: size of the basis after which the iteration starts again from its residual; memory grows with it.
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: the largest number of products with `A`.

    Example:
      >>> import jax.numpy as jnp
      >>> A = jnp.array([[2.0, 1.0], [0.0, 3.0]])
      >>> x, stats = GMRES().solve(lambda v: A @ v, jnp.array([3.0, 6.0]), batched=False)
      >>> print(jnp.round(x, 4), int(stats.steps))
      [0.5 2. ] 2

    Saad and Schultz, "GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems", 1986.
    """

    restart: Annotated[int, Range(ge=1)] = 20

    def solve_rows(self, matvec: Map, b: Vectors, *, tolerance: Float[Array, " batch"] | None = None) -> tuple[Vectors, Stats]:
        goal = self.goal(b, tolerance)
        apply, right = widened(matvec, b)

        def cycle(residual: Vectors, running: Bool[Array, " batch"], left: Int[Array, " batch"]) -> Cycle:
            length = norm(residual)
            a = self._arnoldi(apply, residual, length, goal, running, left)
            y, image = _least_squares(a, length)
            # b - A x without another product: A V_m = V_{m+1} H.
            return Cycle(combine(y, a.basis[:, :-1]), residual - combine(image, a.basis), a.columns, a.columns)

        x, stats = restarted(cycle, right, goal, self.max_steps)
        return x.astype(b.dtype), stats

    def _arnoldi(
        self,
        apply: Map,
        residual: Vectors,
        length: Float[Array, " batch"],
        tolerance: Float[Array, " batch"],
        running: Bool[Array, " batch"],
        left: Int[Array, " batch"],
    ) -> _Arnoldi:
        """Extend the basis from `residual` until every row's least squares residual is within its tolerance, or its products are spent."""
        m, dtype = self.restart, residual.dtype
        start = _Arnoldi(
            taken=jnp.zeros((), jnp.int32),
            basis=first_row(residual, m + 1),
            # Columns never reached stay unit vectors, which the least squares then give weight zero.
            hessenberg=per_row(residual, jnp.eye(m, m + 1, 1), dtype),
            null=per_row(residual, jnp.eye(1, m + 1)[0], dtype),
            columns=per_row(residual, 0, jnp.int32),
            active=running & (left > 0),
        )

        def extend(a: _Arnoldi) -> _Arnoldi:
            j = a.taken
            # An invariant subspace: what is left is rounding, and the solution lies in the basis already.
            basis, column, after = expand(apply, a.basis, j)
            closed = after == 0
            # Extending the left null vector by one entry gives the least squares residual: its norm is length / ‖null‖.
            entry = jnp.where(closed, jnp.inf, -jnp.sum(a.null * column, axis=1) / jnp.where(closed, 1, after))
            null = jnp.where(jnp.arange(m + 1) == j + 1, entry[:, None], a.null)
            finished = length <= tolerance * jnp.linalg.norm(null, axis=1)
            keep = a.active[:, None]
            columns = a.columns + a.active
            return _Arnoldi(
                taken=j + 1,
                basis=basis,
                hessenberg=jnp.where(keep[:, :, None] & (jnp.arange(m) == j)[None, :, None], column[:, None], a.hessenberg),
                null=jnp.where(keep, null, a.null),
                columns=columns,
                active=a.active & ~finished & ~closed & jnp.isfinite(after) & (columns < left),
            )

        return lax.while_loop(lambda a: jnp.any(a.active) & (a.taken < m), extend, start)


def _least_squares(a: _Arnoldi, length: Float[Array, " batch"]) -> tuple[Float[Array, "batch m"], Float[Array, "batch m+1"]]:
    """`y = argmin ‖length e₁ - H y‖` for every sample's Hessenberg matrix, and `H y`."""
    h = jnp.swapaxes(a.hessenberg, 1, 2)

    def solve(h: Float[Array, "batch rows m"], length: Float[Array, " batch"]) -> Float[Array, "batch m"]:
        q, r = jnp.linalg.qr(h)
        # A column that the basis already spans leaves a zero on the diagonal where A is singular; dividing by it is caught later.
        return jax.scipy.linalg.solve_triangular(r, length[:, None, None] * q[:, :1, :].swapaxes(1, 2))[:, :, 0]

    y = per_sample(solve, h, length)
    return y, jnp.einsum("bij,bj->bi", h, y, precision="highest")
