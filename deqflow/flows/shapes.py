"""Shapes of samples that may be several arrays."""

from typing import Any, TypeAlias

import jax

# The shape of one sample: integers for an array, shapes for a tuple of arrays, such as the latents of a multiscale flow.
Shape: TypeAlias = tuple[Any, ...]


def of_an_array(shape: Any) -> bool:
    """Whether this is the shape of a single array.

    Example:
      >>> of_an_array((2, 3)), of_an_array(((2, 3), (4,)))
      (True, False)
    """
    return isinstance(shape, tuple) and all(isinstance(length, int) for length in shape)


def check_batch(name: str, value: Any, shape: Shape) -> None:
    """Raise `ValueError` unless every array of `value` is `(batch, *shape)`, with one batch for all.

    Example:
      >>> import jax.numpy as jnp
      >>> check_batch("base", (jnp.zeros((5, 2)), jnp.zeros((5, 3))), ((2,), (4,)))
      Traceback (most recent call last):
      ValueError: base expected an input of shape ((batch, 2), (batch, 4)), got ((5, 2), (5, 3))
    """
    shapes, structure = jax.tree.flatten(shape, is_leaf=of_an_array)
    arrays, given = jax.tree.flatten(value)
    fits = given == structure and all(x.ndim == len(s) + 1 and x.shape[1:] == s for x, s in zip(arrays, shapes, strict=True))
    if not fits or len({x.shape[0] for x in arrays}) > 1:
        got = jax.tree.map(lambda x: x.shape, value)
        raise ValueError(f"{name} expected an input of shape {_batched(shape)}, got {got}")


def _batched(shape: Shape) -> str:
    """The shape as it reads with a batch in front of every array's."""
    parts = ["batch", *map(str, shape)] if of_an_array(shape) else [_batched(part) for part in shape]
    return f"({', '.join(parts)})" if len(parts) > 1 or of_an_array(shape) else f"({parts[0]},)"
