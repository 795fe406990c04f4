"""Computing in bfloat16 what is kept in float32."""

from typing import TypeVar

import jax
import jax.numpy as jnp

from deqflow.registry import UserError
from deqflow.tasks.density import Density
from deqflow.tasks.task import Task

T = TypeVar("T")


def narrowed(tree: T) -> T:
    """The same arrays, those of floating type in bfloat16; a derivative through it is in their own type."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def widened(tree: T) -> T:
    """The same arrays, those of floating type in float32 or better."""
    wide = lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))  # noqa: E731
    return jax.tree.map(lambda leaf: wide(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def require_sound(task: Task) -> None:
    """Raise `UserError` where three digits are not enough: a likelihood is a sum of log-determinants, and an inverse to be certified."""
    if isinstance(task, Density):
        raise UserError(
            "train.compute: bfloat16 is not for densities: log-determinants are sums of many terms, and a bound below 1 that makes a map "
            "invertible does not survive the rounding of its weights to three digits; leave it out"
        )
