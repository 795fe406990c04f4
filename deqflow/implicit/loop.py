"""The loop that drives every solver: stopping rule, step budget, best iterate, freeze and statistics."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Solver
from deqflow.implicit.status import Status
from deqflow.implicit.trees import Map, Vectors, accumulator, norm

_RUNNING = -1

# A residual a million times larger than what the solve began with is beyond anything an accelerated solver recovers from.
_GROWTH = 1e6

# A sample has stagnated when its best iterate is older than half of the solve, and than this many steps: transients of
# non-normal maps are long in proportion to the solve, and rounding noise finds new minima ever more rarely.
_PATIENCE = 20


class _Progress(NamedTuple):
    taken: Int[Array, ""]
    state: Any
    best: Vectors
    best_count: Int[Array, " batch"]
    score: Float[Array, " batch"]
    ceiling: Float[Array, " batch"]
    stats: Stats


def solve(solver: Solver, f: Map, z0: Vectors, *, budget: Int[Array, ""] | int | None = None, trace: bool = False) -> tuple[Vectors, Stats]:
    """Iterate `solver` on every row of `z0` until it stops, and return each row's best iterate.

    A row stops when it converges (`‖f(z) - z‖₂ <= atol + rtol ‖f(z)‖₂`), diverges or stagnates; from then on its result is frozen
    while the others go on. Nothing here is differentiable: see `deqflow.implicit.gradient`.

    Args:
      solver: the iteration.
      f: the function, treating every row by itself.
      z0: initial guess.
      budget: at most this many steps, traced or not; more than `solver.max_steps` has no effect.
      trace: whether to keep the relative residual after every step.

    Returns:
      The best iterates, finite wherever `z0` is, and the statistics.
    """
    batch = z0.shape[0]
    real = accumulator(z0.dtype)
    limit = solver.max_steps if budget is None else jnp.minimum(budget, solver.max_steps)
    infinite, zero = jnp.full((batch,), jnp.inf, real), jnp.zeros((batch,), jnp.int32)
    start = _Progress(
        taken=jnp.zeros((), jnp.int32),
        state=solver.init(z0),
        best=z0,
        best_count=zero,
        score=infinite,
        ceiling=infinite,
        stats=Stats(
            status=jnp.full((batch,), _RUNNING, jnp.int32),
            steps=zero,
            evaluations=zero,
            residual=infinite,
            relative_residual=infinite,
            trace=jnp.full((solver.max_steps, batch), jnp.nan, real) if trace else None,
        ),
    )

    def proceed(p: _Progress) -> Array:
        return jnp.any(p.stats.status == _RUNNING) & (p.taken < limit)

    def advance(p: _Progress) -> _Progress:
        state = solver.step(f, p.state)
        point = solver.value(state)
        residual, size = norm(point.f.astype(real) - point.z.astype(real)), norm(point.f)
        tolerance = solver.atol + solver.rtol * size
        relative = jnp.where(residual == 0, 0, residual / jnp.where(size > 0, size, 1))
        # Distance from the tolerance: what the stopping rule reads is what ranks the iterates.
        score = residual / jnp.where(tolerance > 0, tolerance, 1)
        taken = p.taken + 1

        running = p.stats.status == _RUNNING
        finite = jnp.isfinite(residual) & jnp.isfinite(size)
        ceiling = jnp.where(p.taken == 0, _GROWTH * jnp.maximum(residual, size), p.ceiling)
        converged = finite & (residual <= tolerance)
        better = running & finite & (converged | (score < p.score))
        best_count = jnp.where(better, taken, p.best_count)
        status = jnp.select(
            [converged, ~finite | (residual > ceiling), taken - best_count > jnp.maximum(_PATIENCE, taken // 2)],
            [Status.CONVERGED, Status.DIVERGED, Status.STAGNATED],
            _RUNNING,
        )
        stats = Stats(
            status=jnp.where(running, status, p.stats.status).astype(jnp.int32),
            steps=jnp.where(running, taken, p.stats.steps),
            evaluations=jnp.where(running, point.evaluations, p.stats.evaluations),
            residual=jnp.where(better, residual, p.stats.residual),
            relative_residual=jnp.where(better, relative, p.stats.relative_residual),
            trace=None if p.stats.trace is None else p.stats.trace.at[p.taken].set(jnp.where(running, relative, jnp.nan)),
        )
        best = jnp.where(better[:, None], point.z, p.best)
        return _Progress(taken, state, best, best_count, jnp.where(better, score, p.score), ceiling, stats)

    end = lax.while_loop(proceed, advance, start)
    status = jnp.where(end.stats.status == _RUNNING, jnp.int32(Status.STEP_LIMIT), end.stats.status)
    stats = Stats(status, end.stats.steps, end.stats.evaluations, end.stats.residual, end.stats.relative_residual, end.stats.trace)
    return end.best, stats
