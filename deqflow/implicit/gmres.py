"""Generalised minimal residuals."""

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from deqflow.implicit.arnoldi import expand
from deqflow.implicit.linear import LinearSolver, relative, widened
from deqflow.implicit.solution import Stats
from deqflow.implicit.status import Status
from deqflow.implicit.trees import Map, Vectors, combine, norm, per_row, per_sample
from deqflow.registry import Range

_RUNNING = -1


class _Arnoldi(NamedTuple):
    taken: Int[Array, ""]
    basis: Float[Array, "batch m+1 n"]
    hessenberg: Float[Array, "batch m m+1"]  # row j holds column j of the Hessenberg matrix
    null: Float[Array, "batch m+1"]  # the vector that the Hessenberg matrix annihilates from the left, beginning with 1
    columns: Int[Array, " batch"]  # how many columns each sample has used
    active: Float[Array, " batch"]  # 1 while a sample still extends its basis


class _Cycles(NamedTuple):
    taken: Int[Array, ""]
    x: Vectors
    residual: Vectors
    status: Int[Array, " batch"]
    steps: Int[Array, " batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GMRES(LinearSolver):
    """Restarted generalised minimal residuals, one Krylov space per sample.

        x_j = argmin ‖b - A x‖₂  over  x in span{b, A b, ..., A^{j-1} b}

    An Arnoldi basis, orthogonalised twice in at least float32, of at most `restart + 1` states is kept per sample. Needs no transpose
    and no contraction: any non-singular `A` is solved when `restart` suffices.

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
        size, goal = norm(b), self.goal(b, tolerance)
        apply, right = widened(matvec, b)

        def cycle(c: _Cycles) -> _Cycles:
            running = c.status == _RUNNING
            length = norm(c.residual)
            a = self._arnoldi(apply, c.residual, length, goal, running, self.max_steps - c.taken)
            y, image = _least_squares(a, length)
            x = c.x + combine(y, a.basis[:, :-1])
            # b - A x without another product: A V_m = V_{m+1} H.
            residual = c.residual - combine(image, a.basis)
            remaining = norm(residual)
            usable = running & jnp.isfinite(remaining) & jnp.all(jnp.isfinite(x), axis=1) & (remaining <= length)
            # A cycle that gains less than one part in a hundred will not be followed by one that gains more.
            stuck = ~usable | (remaining > 0.99 * length)
            status = jnp.select(
                [usable & (remaining <= goal), ~jnp.isfinite(length), stuck],
                [Status.CONVERGED, Status.DIVERGED, Status.STAGNATED],
                _RUNNING,
            )
            return _Cycles(
                taken=c.taken + a.taken,
                x=jnp.where(usable[:, None], x, c.x),
                residual=jnp.where(usable[:, None], residual, c.residual),
                status=jnp.where(running, status, c.status).astype(jnp.int32),
                steps=c.steps + a.columns,
            )

        done = jnp.where(size <= goal, Status.CONVERGED, _RUNNING).astype(jnp.int32)
        zero = per_row(b, 0, jnp.int32)
        start = _Cycles(jnp.zeros((), jnp.int32), jnp.zeros_like(right), right, done, zero)
        end = lax.while_loop(lambda c: jnp.any(c.status == _RUNNING) & (c.taken < self.max_steps), cycle, start)
        residual = norm(end.residual)
        stats = Stats(
            status=jnp.where(end.status == _RUNNING, jnp.int32(Status.STEP_LIMIT), end.status),
            steps=end.steps,
            evaluations=end.steps,
            residual=residual,
            relative_residual=relative(residual, size),
        )
        return end.x.astype(b.dtype), stats

    def _arnoldi(
        self,
        apply: Map,
        residual: Vectors,
        length: Float[Array, " batch"],
        tolerance: Float[Array, " batch"],
        running: Array,
        budget: Int[Array, ""],
    ) -> _Arnoldi:
        """Extend the basis from `residual` until every sample's least squares residual is within its tolerance."""
        m, dtype = self.restart, residual.dtype
        first = residual / jnp.where(length > 0, length, 1)[:, None]
        basis = jnp.pad(first[:, None], ((0, 0), (0, m), (0, 0)))
        start = _Arnoldi(
            taken=jnp.zeros((), jnp.int32),
            basis=basis,
            # Columns never reached stay unit vectors, which the least squares then give weight zero.
            hessenberg=per_row(residual, jnp.eye(m, m + 1, 1), dtype),
            null=per_row(residual, jnp.eye(1, m + 1)[0], dtype),
            columns=per_row(residual, 0, jnp.int32),
            active=running,
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
            return _Arnoldi(
                taken=j + 1,
                basis=basis,
                hessenberg=jnp.where(keep[:, :, None] & (jnp.arange(m) == j)[None, :, None], column[:, None], a.hessenberg),
                null=jnp.where(keep, null, a.null),
                columns=a.columns + a.active,
                active=a.active & ~finished & ~closed & jnp.isfinite(after),
            )

        return lax.while_loop(lambda a: jnp.any(a.active) & (a.taken < jnp.minimum(m, budget)), extend, start)


def _least_squares(a: _Arnoldi, length: Float[Array, " batch"]) -> tuple[Float[Array, "batch m"], Float[Array, "batch m+1"]]:
    """`y = argmin ‖length e₁ - H y‖` for every sample's Hessenberg matrix, and `H y`."""
    h = jnp.swapaxes(a.hessenberg, 1, 2)

    def solve(h: Float[Array, "batch rows m"], length: Float[Array, " batch"]) -> Float[Array, "batch m"]:
        q, r = jnp.linalg.qr(h)
        # A column that the basis already spans leaves a zero on the diagonal where A is singular; dividing by it is caught later.
        return jax.scipy.linalg.solve_triangular(r, length[:, None, None] * q[:, :1, :].swapaxes(1, 2))[:, :, 0]

    y = per_sample(solve, h, length)
    return y, jnp.einsum("bij,bj->bi", h, y, precision="highest")
