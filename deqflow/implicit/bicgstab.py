"""Stabilised bi-conjugate gradients."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deqflow.implicit.linear import Cycle, LinearSolver, restarted, widened
from deqflow.implicit.solution import Stats
from deqflow.implicit.trees import Map, Vectors, dot, finite, norm, per_row, scale, select

# A cycle ends when its residual has found no new minimum for this many steps, and for half of the cycle.
_PATIENCE = 10


class _State(NamedTuple):
    taken: Int[Array, ""]
    x: Vectors
    r: Vectors
    shadow: Vectors
    p: Vectors
    rho: Float[Array, " batch"]
    best: Vectors
    lowest: Float[Array, " batch"]  # the residual at `best`
    best_step: Int[Array, " batch"]
    steps: Int[Array, " batch"]
    active: Bool[Array, " batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiCGStab(LinearSolver):
    """Stabilised bi-conjugate gradients, one system per sample.

    Two products and six states of memory per step, however many there are, where `GMRES` keeps a basis that grows. Its residual is not
    monotone and may break down; it is then started again from its best iterate. What it reports is `b - A x` itself, at one product more,
    as the recursion by which the method follows its residual drifts away from that.

    In benchmarks/solvers.py it takes two thirds of the time of `jax.scipy.sparse.linalg.bicgstab`, which solves the batch as one system, so
    that samples are not independent, and as long as lineax's under `vmap`, which needs float64 to be enabled to get anywhere there.

    Args:
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: the largest number of products with `A`, give or take the last step and the product that confirms it.

    Example:
      >>> import jax.numpy as jnp
      >>> A = jnp.array([[2.0, 1.0], [0.0, 3.0]])
      >>> x, stats = BiCGStab().solve(lambda v: A @ v, jnp.array([3.0, 6.0]), batched=False)
      >>> print(jnp.round(x, 4), int(stats.evaluations))
      [0.5 2. ] 5

    van der Vorst, "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for the solution of nonsymmetric linear systems", 1992.
    """

    def solve_rows(self, matvec: Map, b: Vectors, *, tolerance: Float[Array, " batch"] | None = None) -> tuple[Vectors, Stats]:
        goal = self.goal(b, tolerance)
        apply, right = widened(matvec, b)

        def cycle(residual: Vectors, running: Bool[Array, " batch"], left: Int[Array, " batch"]) -> Cycle:
            end = self._iterate(apply, residual, goal, running, left)
            # The recursion for r loses touch with b - A x, so what it claims is confirmed.
            return Cycle(end.best, residual - apply(end.best), end.steps, 2 * end.steps + 1)

        x, stats = restarted(cycle, right, goal, self.max_steps)
        return x.astype(b.dtype), stats

    def _iterate(
        self, apply: Map, b: Vectors, goal: Float[Array, " batch"], running: Bool[Array, " batch"], left: Int[Array, " batch"]
    ) -> _State:
        """Steps from zero until every row's recursive residual is within its goal, stagnates, or its products are spent."""

        def step(s: _State) -> _State:
            v = apply(s.p)
            alpha = _divide(s.rho, dot(s.shadow, v))
            half = s.r - scale(alpha, v)
            t = apply(half)
            omega = _divide(dot(t, half), dot(t, t))
            x = s.x + scale(alpha, s.p) + scale(omega, half)
            r = half - scale(omega, t)
            rho = dot(s.shadow, r)
            beta = _divide(rho * alpha, s.rho * omega)
            residual = norm(r)
            # A shadow that has become orthogonal to the residual teaches nothing more: begin again from here.
            again = (jnp.abs(rho) <= 1e-3 * jnp.finfo(b.dtype).eps ** 0.5 * norm(s.shadow) * residual) | (beta == 0)

            taken = s.taken + 1
            sound = jnp.isfinite(residual) & finite(x)
            better = s.active & sound & (residual < s.lowest)
            best_step = jnp.where(better, taken, s.best_step)
            patient = taken - best_step <= jnp.maximum(_PATIENCE, taken // 2)
            return _State(
                taken=taken,
                x=x,
                r=r,
                shadow=select(again, r, s.shadow),
                p=select(again, r, r + scale(beta, s.p - scale(omega, v))),
                rho=jnp.where(again, residual**2, rho),
                best=select(better, x, s.best),
                lowest=jnp.where(better, residual, s.lowest),
                best_step=best_step,
                steps=s.steps + s.active,
                active=s.active & sound & (residual > goal) & patient & (2 * taken < left),
            )

        zero, none, size = per_row(b, 0, jnp.int32), jnp.zeros_like(b), norm(b)
        start = _State(jnp.zeros((), jnp.int32), none, b, b, b, size**2, none, size, zero, zero, running & (left > 0))
        return lax.while_loop(lambda s: jnp.any(s.active), step, start)


def _divide(a: Float[Array, " batch"], b: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """`a / b`, and 0 for a zero divisor, where the method has nothing to go along."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))
