"""The loop that drives every solver: stopping rule, step budget, best iterate, freeze and statistics."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Solver
from deqflow.implicit.status import Status
from deqflow.implicit.trees import Map, Vectors, accumulator, norm, over, per_row, relative, select

_RUNNING = -1

# A residual a million times larger than what the solve began with is beyond anything an accelerated solver recovers from.
_GROWTH = 1e6

# A sample has stagnated when its last progress is older than half of the solve, and than this many steps: transients of
# non-normal maps are long in proportion to the solve, and rounding noise finds new minima ever more rarely. Progress is a new
# minimum of the residual, relative to the tolerance or not: of a slow contraction only the latter falls all the time.
_PATIENCE = 20

# By then a residual this many times the best one has not merely stopped falling: the iteration is on its way to infinity.
_RISE = 100

# Before a row is told either, a solver that restarts puts it back to its best iterate with nothing remembered. The next step evaluates
# there, and the one after it is one of plain iteration: where `f` contracts, that is progress, and the row goes on as at first. With
# none, for more steps than this, it was rightly stuck; who looks every few steps only may miss that one, and waits as before.
# Accelerated steps across the kinks of a map may go round in circles though it contracts.
_PROOF = 1


class Request(NamedTuple):
    """What is asked of a solve beside the solution.

    Attributes:
      budget: at most this many steps, traced or not; more than `solver.max_steps` has no effect.
      trace: whether to keep the relative residual after every step.
      states: the numbers of steps, in increasing order, after which to keep the best iterates so far.
      spent: how much of the budget each row has spent before.
    """

    budget: Int[Array, ""] | int | None = None
    trace: bool = False
    states: tuple[int, ...] = ()
    spent: Int[Array, " batch"] | int = 0

    def limit(self, solver: Solver) -> Int[Array, ""] | int:
        """The largest number of steps of this solve."""
        return solver.max_steps if self.budget is None else jnp.minimum(self.budget, solver.max_steps)


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
    going: Bool[Array, ""]  # whether any row is running
    halted: Bool[Array, ""]  # whether any is to be put back before the next step
    state: Any
    best: Vectors
    best_step: Int[Array, " batch"]
    best_state: Any
    score: Float[Array, " batch"]
    lowest: Float[Array, " batch"]
    progress: Int[Array, " batch"]  # the step of the last progress
    began: Int[Array, " batch"]  # the step at which the row was put back last
    again: Bool[Array, " batch"]  # whether it is to be put back
    verdict: Int[Array, " batch"]  # the status it would have ended with otherwise
    ceiling: Float[Array, " batch"]
    stats: Stats


def solve(
    solver: Solver,
    f: Map,
    z0: Vectors,
    request: Request = Request(),
    *,
    tolerance: Float[Array, " batch"] | None = None,
    keep: bool = False,
) -> Solved:
    """Iterate `solver` on every row of `z0` until it stops, and return each row's best iterate.

    A row stops when it converges (`‖f(z) - z‖₂ <= atol + rtol ‖f(z)‖₂`), diverges or stagnates; from then on its result is frozen
    while the others go on. One that stagnates first gets a second chance from its best iterate, if the solver restarts. Nothing
    here is differentiable: see `deqflow.implicit.gradient`.

    Args:
      solver: the iteration.
      f: the function, treating every row by itself.
      z0: initial guess.
      request: the step budget, and what to record on the way.
      tolerance: the residual at which each row has converged, instead of what `atol` and `rtol` make of it.
      keep: whether to keep the solver's state that belongs to the best iterate, for a gradient that reads it.
    """
    batch = z0.shape[0]
    real = accumulator(z0.dtype)
    limit = request.limit(solver)
    infinite, zero = per_row(z0, jnp.inf, real), per_row(z0, 0, jnp.int32)
    start = _Progress(
        taken=jnp.zeros((), jnp.int32),
        going=jnp.full((), batch > 0),
        halted=jnp.zeros((), bool),
        state=(initial := solver.init(z0)),
        best=z0,
        best_step=zero,
        best_state=initial if keep else None,
        score=infinite,
        lowest=infinite,
        progress=zero,
        began=zero,
        again=zero > 0,
        verdict=zero,
        ceiling=infinite,
        stats=Stats(
            status=per_row(z0, _RUNNING, jnp.int32),
            steps=zero,
            evaluations=zero,
            residual=infinite,
            relative_residual=infinite,
            trace=jnp.full((solver.max_steps, batch), jnp.nan, real) if request.trace else None,
        ),
    )

    def advance(p: _Progress, stop: Array | int) -> _Progress:
        state, taken = p.state, p.taken + 1
        if solver.check_every > 1:
            taken = jnp.minimum(p.taken + solver.check_every, stop)
            state = lax.fori_loop(p.taken + 1, taken, lambda _, state: solver.step(f, state), state)
        state = solver.step(f, state)
        point = solver.value(state)
        running = p.stats.status == _RUNNING
        difference = point.residual
        if difference is None:
            # Rows that have stopped need none, and choosing keeps XLA on the CPU from fusing the difference with the sum of its squares:
            # that was up to three times slower than one after the other.
            difference = jnp.where(over(running, point.z), point.f.astype(real) - point.z.astype(real), 0)
        residual, size = norm(difference), norm(point.f)
        ratio = relative(residual, size)
        goal = solver.atol + solver.rtol * size if tolerance is None else tolerance
        # Distance from the tolerance: what the stopping rule reads is what ranks the iterates. Where rtol makes it zero because f is, as
        # relu may, nothing is further from it.
        relaxed = tolerance is None and solver.rtol > 0
        score = jnp.where(goal > 0, residual / jnp.where(goal > 0, goal, 1), jnp.finfo(real).max if relaxed else residual)

        finite = jnp.isfinite(residual) & jnp.isfinite(size)
        ceiling = jnp.where(p.taken == 0, _GROWTH * jnp.maximum(residual, size), p.ceiling)
        converged = finite & (residual <= goal)
        better = running & finite & (converged | (score < p.score))
        best_step = jnp.where(better, taken, p.best_step)
        lower = running & finite & (residual < p.lowest)
        progress = jnp.where(better | lower, taken, p.progress)
        proven = progress > p.began
        unproven = _PROOF if solver.check_every == 1 else _PATIENCE
        stuck = taken - progress > jnp.where(proven, jnp.maximum(_PATIENCE, (taken - p.began) // 2), unproven)
        # A row that was put back and has made no progress since is told why it was.
        verdict = jnp.where(proven, jnp.where(residual > _RISE * p.lowest, Status.DIVERGED, Status.STAGNATED), p.verdict)
        diverged = ~finite | (residual > ceiling)
        spent = jnp.broadcast_to(taken + request.spent >= limit, converged.shape)
        again = solver.restarts & running & stuck & proven & ~(converged | diverged | spent)
        status = jnp.select(
            [converged, diverged, stuck & ~again, spent],
            [Status.CONVERGED, Status.DIVERGED, verdict, Status.STEP_LIMIT],
            _RUNNING,
        )
        stats = Stats(
            status=jnp.where(running, status, p.stats.status).astype(jnp.int32),
            steps=jnp.where(running, taken, p.stats.steps),
            evaluations=jnp.where(running, point.evaluations, p.stats.evaluations),
            residual=jnp.where(better, residual, p.stats.residual),
            relative_residual=jnp.where(better, ratio, p.stats.relative_residual),
            trace=None if p.stats.trace is None else p.stats.trace.at[taken - 1].set(jnp.where(running, ratio, jnp.nan)),
        )
        best = jnp.where(over(better, point.z), point.z, p.best)
        best_state = select(better, state, p.best_state) if keep else None
        score, lowest = jnp.where(better, score, p.score), jnp.where(lower, residual, p.lowest)
        # In one reduction over the rows, which on several devices is one exchange.
        going, halted = jnp.any(jnp.stack([stats.status == _RUNNING, again]), axis=1)
        return _Progress(
            taken, going, halted, state, best, best_step, best_state, score, lowest, progress, p.began, again, verdict, ceiling, stats
        )

    def put_back(p: _Progress) -> _Progress:
        state = solver.restart(p.state, p.best, p.again)
        lowest = jnp.where(p.again, p.stats.residual, p.lowest)
        progress, began = (jnp.where(p.again, p.taken, step) for step in (p.progress, p.began))
        return p._replace(halted=jnp.zeros_like(p.halted), state=state, lowest=lowest, progress=progress, began=began)

    def until(stop: Array | int, p: _Progress) -> _Progress:
        def attempt(p: _Progress) -> _Progress:
            return lax.while_loop(lambda p: p.going & ~p.halted & (p.taken < stop), lambda p: advance(p, stop), p)

        if not solver.restarts:
            return attempt(p)
        # The step is compiled once, and what is done for rows that are put back costs the others nothing.
        return lax.while_loop(lambda p: p.going & (p.taken < stop), lambda p: attempt(put_back(p)), p)

    end, states = start, []
    for mark in request.states:
        end = until(jnp.minimum(mark, limit), end)
        states.append(end.best)
    end = until(limit, end)
    status = jnp.where(end.stats.status == _RUNNING, jnp.int32(Status.STEP_LIMIT), end.stats.status)
    stats = end.stats._replace(status=status, states=tuple(states))
    return Solved(end.best, stats, end.best_step, end.best_state)
