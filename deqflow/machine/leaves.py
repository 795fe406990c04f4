"""Arrays by name: all that a run holds."""

from collections.abc import Mapping
from typing import TypeVar

import jax

T = TypeVar("T")

Shapes = dict[str, jax.ShapeDtypeStruct]
Leaves = dict[str, jax.Array]
"""Arrays by name. The part before the first slash is the role: `params`, `average` (of the parameters), `model` (variables that
are not parameters), `optimizer`, `sums` (of the logged numbers since the last row), `guard` and `refused` (see `deqflow.train.guard`), and
`step` alone."""


def section(leaves: Mapping[str, T], role: str) -> dict[str, T]:
    """The leaves of one role, in the order in which they stand."""
    return {name: leaf for name, leaf in leaves.items() if name.partition("/")[0] == role}
