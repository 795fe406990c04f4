"""How a solve ended."""

import enum


class Status(enum.IntEnum):
    """How the solve of one sample ended; `message` says what that means and `remedy` what to change.

    Example:
      >>> Status.STEP_LIMIT.message
      'the step budget ran out above the tolerance'
    """

    CONVERGED = 0
    STEP_LIMIT = 1
    STAGNATED = 2
    DIVERGED = 3
    INVALID_INPUT = 4

    @property
    def message(self) -> str:
        """What happened, in one clause."""
        return _TEXTS[self][0]

    @property
    def remedy(self) -> str:
        """What to change, in one clause; empty for `CONVERGED`."""
        return _TEXTS[self][1]

    @property
    def failed(self) -> bool:
        """Whether the value is only a finite placeholder, whose gradient is zero."""
        return self >= Status.DIVERGED


_TEXTS = {
    Status.CONVERGED: ("the residual is within the tolerance", ""),
    Status.STEP_LIMIT: (
        "the step budget ran out above the tolerance",
        "raise max_steps or the tolerance, or make the map more contractive",
    ),
    Status.STAGNATED: (
        "the residual stopped decreasing above the tolerance",
        "raise the tolerance above the floor of the floating-point type, use float64, or change the solver",
    ),
    Status.DIVERGED: (
        "the iteration grew without bound or became non-finite",
        "damp the solver, use another one, or make the map more contractive",
    ),
    Status.INVALID_INPUT: (
        "the input holds NaN or infinity",
        "find where the data or the layer before it turns non-finite",
    ),
}
