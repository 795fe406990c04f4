"""Which updates are refused, inside the compiled step, and what a user is told of it."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool

from deqflow.implicit.status import Status
from deqflow.machine.leaves import Leaves
from deqflow.train.settings import Guard

_WINDOW = 50
"""Updates over which the mean and the mean absolute deviation of the loss run; before so many were made, no loss stands out."""


def fresh(guard: Guard, numbers: Mapping[str, Array]) -> Leaves:
    """The leaves of the guard at step 0: counters, the running loss, and the numbers of the last step that was refused.

    Args:
      guard: the settings.
      numbers: what a step logs, of which the names and types count.
    """
    leaves: Leaves = {f"guard/{name}": jnp.zeros((), jnp.int32) for name in ("in_a_row", "retries", "since_row")}
    if guard.spike is not None:
        leaves["guard/made"] = jnp.zeros((), jnp.int32)
        leaves |= {f"guard/{name}": jnp.zeros((), jnp.float32) for name in ("mean", "deviation")}
    return leaves | {f"refused/{name}": jnp.zeros_like(value) for name, value in numbers.items()}


def judge(guard: Guard, limit: int, numbers: Leaves, state: Leaves, first: Bool[Array, ""]) -> tuple[Bool[Array, ""], Leaves]:
    """Whether an update is made, and the leaves of the guard after it.

    After `limit` refusals in a row everything is refused: the state stays as it is until the trainer, which never waits for a step's
    numbers, has read of them.

    Args:
      guard: the settings.
      limit: so many refusals in a row are a divergence.
      numbers: what the step logs.
      state: before the step.
      first: whether this is the first step after a logged row.
    """
    bad = ~(jnp.isfinite(numbers["loss"]) & jnp.isfinite(numbers["gradient_norm"]))
    if "solver_failures" in numbers:
        bad |= numbers["solver_failures"] > guard.failures
    distance = jnp.zeros(())
    if guard.spike is not None:
        distance = numbers["loss"].astype(jnp.float32) - state["guard/mean"]
        bad |= (state["guard/made"] >= _WINDOW) & (distance > guard.spike * state["guard/deviation"])
    refused = bad | (state["guard/in_a_row"] >= limit)
    leaves = {
        "guard/in_a_row": jnp.where(refused, state["guard/in_a_row"] + 1, 0),
        "guard/since_row": jnp.where(first, 0, state["guard/since_row"]) + refused.astype(jnp.int32),
        "guard/retries": state["guard/retries"],
        **{f"refused/{name}": jnp.where(bad, value, state[f"refused/{name}"]) for name, value in numbers.items()},
    }
    if guard.spike is not None:
        made = jnp.where(refused, state["guard/made"], jnp.minimum(state["guard/made"] + 1, _WINDOW))
        follow = jnp.where(refused, 0, 1 / jnp.maximum(made, 1))
        distance = jnp.where(refused, 0, distance)
        leaves["guard/made"] = made
        leaves["guard/mean"] = state["guard/mean"] + follow * distance
        leaves["guard/deviation"] = state["guard/deviation"] + follow * (jnp.abs(distance) - state["guard/deviation"])
    return ~refused, leaves


def reason(guard: Guard, refused: Mapping[str, float]) -> tuple[str, str]:
    """Why the last step was refused, in one clause, and the likely remedy, from its numbers."""
    remedy = "lower the learning rate, clip gradients (optim.clip) or look at the data"
    if not math.isfinite(refused["loss"]):
        return f"the training loss became {refused['loss']}", remedy
    if not math.isfinite(refused["gradient_norm"]):
        return f"the gradient's norm became {refused['gradient_norm']} at a loss of {refused['loss']:.4g}", remedy
    if (failures := refused.get("solver_failures", 0.0)) > guard.failures:
        return f"{failures:.0%} of the solves failed", "lower the learning rate or penalise the Jacobian (model.training.jacobian)"
    return f"the training loss, {refused['loss']:.4g}, stood out", f"{remedy}, or raise train.guard.spike"


def solves_in_words(shares: Mapping[Status, float]) -> str:
    """How the solves of a batch ended, the most frequent failure first, with its remedy; empty if none failed.

    Example:
      >>> solves_in_words({Status.CONVERGED: 0.25, Status.DIVERGED: 0.75})
      'of its solves 75% ended DIVERGED: the iteration grew without bound or became non-finite; damp the solver, use another one, or ...'
    """
    failed = sorted(((share, status) for status, share in shares.items() if status.failed and share > 0), reverse=True)
    if not failed:
        return ""
    ends = ", ".join(f"{share:.0%} ended {status.name}: {status.message}" for share, status in failed)
    return f"of its solves {ends}; {failed[0][1].remedy}"
