"""The loop that drives every solver: stopping rule, step budget, best iterate, freeze and statistics."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Solver
from deqflow.implicit.status import Status
from deqflow.implicit.trees import Map, Vectors, accumulator, norm, per_row, relative, select

_RUNNING = -1

# A residual a million times larger than what the solve began with is beyond anything an accelerated solver recovers from.
_GROWTH = 1e6

# A sample has stagnated when its last progress is older than half of the solve, and than this many steps: transients of
# non-normal maps are long in proportion to the solve, and rounding noise finds new minima ever more rarely. Progress is a new
# minimum of the residual, relative to the tolerance or not: of a slow contraction only the latter falls all the time.
_PATIENCE = 20

# By then a residual this many times the best one has not merely stopped falling: the iteration is on its way to infinity.
_RISE = 100


class Solved(NamedTuple):
    """What a solve leaves behind, a row per sample.

    Attributes:
      value: the best iterates, finite wherever the initial guess is.
      stats: the statistics.
      best_step: the step at which each row's best iterate was found, 0 for the initial guess.
      state: the solver's state after that step, or `None` unless it was asked for.
    """

    value: Vectors
    stats: Stats
    best_step: Int[Array, " batch"]
    state: Any


class _Progress(NamedTuple):
    taken: Int[Array, ""]
    state: Any
    best: Vectors
    best_step: Int[Array, " batch"]
    best_state: Any
    score: Float[Array, " batch"]
    lowest: Float[Array, " batch"]
    progress: Int[Array, " batch"]
    ceiling: Float[Array, " batch"]
    stats: Stats


def solve(
    solver: Solver,
    f: Map,
    z0: Vectors,
    *,
    budget: Int[Array, ""] | int | None = None,
    tolerance: Float[Array, " batch"] | None = None,
    trace: bool = False,
    keep: bool = False,
) -> Solved:
    """Iterate `solver` on every row of `z0` until it stops, and return each row's best iterate.

    A row stops when it converges (`‖f(z) - z‖₂ <= atol + rtol ‖f(z)‖₂`), diverges or stagnates; from then on its result is frozen
    while the others go on. Nothing here is differentiable: see `deqflow.implicit.gradient`.

    Args:
      solver: the iteration.
      f: the function, treating every row by itself.
      z0: initial guess.
      budget: at most this many steps, traced or not; more than `solver.max_steps` has no effect.
      tolerance: the residual at which each row has converged, instead of what `atol` and `rtol` make of it.
      trace: whether to keep the relative residual after every step.
      keep: whether to keep the solver's state that belongs to the best iterate, for a gradient that reads it.
    """
    batch = z0.shape[0]
    real = accumulator(z0.dtype)
    limit = solver.max_steps if budget is None else jnp.minimum(budget, solver.max_steps)
    infinite, zero = per_row(z0, jnp.inf, real), per_row(z0, 0, jnp.int32)
    start = _Progress(
        taken=jnp.zeros((), jnp.int32),
        state=(initial := solver.init(z0)),
        best=z0,
        best_step=zero,
        best_state=initial if keep else None,
        score=infinite,
        lowest=infinite,
        progress=zero,
        ceiling=infinite,
        stats=Stats(
            status=per_row(z0, _RUNNING, jnp.int32),
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
        ratio = relative(residual, size)
        goal = solver.atol + solver.rtol * size if tolerance is None else tolerance
        # Distance from the tolerance: what the stopping rule reads is what ranks the iterates.
        score = residual / jnp.where(goal > 0, goal, 1)
        taken = p.taken + 1

        running = p.stats.status == _RUNNING
        finite = jnp.isfinite(residual) & jnp.isfinite(size)
        ceiling = jnp.where(p.taken == 0, _GROWTH * jnp.maximum(residual, size), p.ceiling)
        converged = finite & (residual <= goal)
        better = running & finite & (converged | (score < p.score))
        best_step = jnp.where(better, taken, p.best_step)
        lower = running & finite & (residual < p.lowest)
        progress = jnp.where(better | lower, taken, p.progress)
        stuck = taken - progress > jnp.maximum(_PATIENCE, taken // 2)
        diverged = ~finite | (residual > ceiling) | (stuck & (residual > _RISE * p.lowest))
        status = jnp.select([converged, diverged, stuck], [Status.CONVERGED, Status.DIVERGED, Status.STAGNATED], _RUNNING)
        stats = Stats(
            status=jnp.where(running, status, p.stats.status).astype(jnp.int32),
            steps=jnp.where(running, taken, p.stats.steps),
            evaluations=jnp.where(running, point.evaluations, p.stats.evaluations),
            residual=jnp.where(better, residual, p.stats.residual),
            relative_residual=jnp.where(better, ratio, p.stats.relative_residual),
            trace=None if p.stats.trace is None else p.stats.trace.at[p.taken].set(jnp.where(running, ratio, jnp.nan)),
        )
        best = jnp.where(better[:, None], point.z, p.best)
        best_state = select(better, state, p.best_state) if keep else None
        score, lowest = jnp.where(better, score, p.score), jnp.where(lower, residual, p.lowest)
        return _Progress(taken, state, best, best_step, best_state, score, lowest, progress, ceiling, stats)

    end = lax.while_loop(proceed, advance, start)
    status = jnp.where(end.stats.status == _RUNNING, jnp.int32(Status.STEP_LIMIT), end.stats.status)
    return Solved(end.best, end.stats._replace(status=status), end.best_step, end.best_state)
