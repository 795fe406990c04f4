"""The methods that are compared: pairs of a solver that takes a given number of steps, and a gradient."""

import dataclasses

from deqflow.implicit import (
    Gradient,
    Implicit,
    JacobianFree,
    Phantom,
    Reversible,
    ReversibleAdjoint,
    Solver,
    Unrolled,
)
from deqflow.registry import UserError, suggest

_GRADIENTS: dict[str, Gradient] = {
    "unrolled": Unrolled(),
    "checkpointed": Unrolled(checkpoint="every"),
    "checkpointed_sqrt": Unrolled(checkpoint="sqrt"),
    "reversible": ReversibleAdjoint(),
    "implicit": Implicit(),
    "jacobian_free": JacobianFree(),
    "phantom": Phantom(),
}

METHODS = tuple(_GRADIENTS)
"""Their names."""


def check_method(method: str) -> None:
    """Raise `UserError` unless there is such a method."""
    if method not in _GRADIENTS:
        raise UserError(f"unknown method {method!r}{suggest(method, METHODS)} (known: {', '.join(METHODS)})")


def pair(method: str, steps: int, solver: Solver) -> tuple[Solver, Gradient]:
    """The solver and the gradient of a method.

    Zero tolerances let the solver go on for all of its steps, unless rounding leaves nothing to gain before.

    Args:
      method: one of `METHODS`.
      steps: the number of solver steps; one of `reversible` takes two evaluations of the cell.
      solver: takes the steps, except those of `reversible`, which has a solver of its own.
    """
    kind = Reversible() if method == "reversible" else solver
    return dataclasses.replace(kind, atol=0.0, rtol=0.0, max_steps=steps), _GRADIENTS[method]
