"""Stabilised bi-conjugate gradients."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from deqflow.implicit.linear import LinearSolver, relative, widened
from deqflow.implicit.solution import Stats
from deqflow.implicit.status import Status
from deqflow.implicit.trees import Map, Vectors, dot, norm, per_row

_RUNNING = -1

# A residual that has found no new minimum for this many steps, and for half of the solve, will not find one.
_PATIENCE = 10


class _State(NamedTuple):
    taken: Int[Array, ""]
    x: Vectors
    r: Vectors
    shadow: Vectors
    p: Vectors
    rho: Float[Array, " batch"]
    best: Vectors
    best_residual: Float[Array, " batch"]
    best_count: Int[Array, " batch"]
    status: Int[Array, " batch"]
    steps: Int[Array, " batch"]
    checks: Int[Array, " batch"]  # of the true residual


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiCGStab(LinearSolver):
    """Stabilised bi-conjugate gradients, one system per sample.

    Two products and six states of memory per step, however many there are, where `GMRES` keeps a basis that grows. Its residual is not
    monotone and may break down; it is then started again from where it stands. A residual within the tolerance is believed only when
    `b - A x` confirms it. The best iterate is returned.

    Args:
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: the largest number of products with `A`, but for those that confirm a residual.

    Example:
      >>> import jax.numpy as jnp
      >>> A = jnp.array([[2.0, 1.0], [0.0, 3.0]])
      >>> x, stats = BiCGStab().solve(lambda v: A @ v, jnp.array([3.0, 6.0]), batched=False)
      >>> print(jnp.round(x, 4), int(stats.evaluations))
      [0.5 2. ] 5

    van der Vorst, "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for the solution of nonsymmetric linear systems", 1992.
    """

    def solve_rows(self, matvec: Map, b: Vectors, *, tolerance: Float[Array, " batch"] | None = None) -> tuple[Vectors, Stats]:
        size, goal = norm(b), self.goal(b, tolerance)
        apply, right = widened(matvec, b)

        def step(s: _State) -> _State:
            running = s.status == _RUNNING
            v = apply(s.p)
            alpha = _divide(s.rho, dot(s.shadow, v))
            half = s.r - alpha[:, None] * v
            t = apply(half)
            omega = _divide(dot(t, half), dot(t, t))
            x = s.x + alpha[:, None] * s.p + omega[:, None] * half
            r = half - omega[:, None] * t
            rho = dot(s.shadow, r)
            beta = _divide(rho * alpha, s.rho * omega)
            residual = norm(r)
            # A shadow that has become orthogonal to the residual teaches nothing more: begin again from here.
            again = (jnp.abs(rho) <= 1e-3 * jnp.finfo(right.dtype).eps ** 0.5 * norm(s.shadow) * residual) | (beta == 0)
            p = jnp.where(again[:, None], r, r + beta[:, None] * (s.p - omega[:, None] * v))
            shadow = jnp.where(again[:, None], r, s.shadow)
            rho = jnp.where(again, residual**2, rho)

            # The recursion for r loses touch with b - A x: before a sample is believed, its true residual replaces r.
            claims = running & (residual <= goal)
            true = lax.cond(jnp.any(claims), lambda: right - apply(x), lambda: r)
            r = jnp.where(claims[:, None], true, r)
            residual = jnp.where(claims, norm(true), residual)
            p = jnp.where(claims[:, None], r, p)
            shadow = jnp.where(claims[:, None], r, shadow)
            rho = jnp.where(claims, residual**2, rho)

            taken = s.taken + 1
            finite = jnp.isfinite(residual) & jnp.all(jnp.isfinite(x), axis=1)
            better = running & finite & (residual < s.best_residual)
            best_count = jnp.where(better, taken, s.best_count)
            status = jnp.select(
                [finite & (residual <= goal), ~finite, taken - best_count > jnp.maximum(_PATIENCE, taken // 2)],
                [Status.CONVERGED, Status.DIVERGED, Status.STAGNATED],
                _RUNNING,
            )
            return _State(
                taken,
                x,
                r,
                shadow,
                p,
                rho,
                best=jnp.where(better[:, None], x, s.best),
                best_residual=jnp.where(better, residual, s.best_residual),
                best_count=best_count,
                status=jnp.where(running, status, s.status).astype(jnp.int32),
                steps=jnp.where(running, taken, s.steps),
                checks=s.checks + claims,
            )

        zero = per_row(b, 0, jnp.int32)
        done = jnp.where(size <= goal, Status.CONVERGED, _RUNNING).astype(jnp.int32)
        none = jnp.zeros_like(right)
        start = _State(jnp.zeros((), jnp.int32), none, right, right, right, size**2, none, size, zero, done, zero, zero)
        end = lax.while_loop(lambda s: jnp.any(s.status == _RUNNING) & (2 * s.taken < self.max_steps), step, start)
        stats = Stats(
            status=jnp.where(end.status == _RUNNING, jnp.int32(Status.STEP_LIMIT), end.status),
            steps=end.steps,
            evaluations=2 * end.steps + end.checks,
            residual=end.best_residual,
            relative_residual=relative(end.best_residual, size),
        )
        return end.best.astype(b.dtype), stats


def _divide(a: Float[Array, " batch"], b: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """`a / b`, and 0 for a zero divisor, where the method has nothing to go along."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))
