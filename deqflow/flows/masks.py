"""Which dimensions a coupling keeps: boolean vectors over the flattened event, true where a dimension is kept.

A coupling of images takes them in the shape of an image: `masks.checkerboard(shape).reshape(shape)`.
"""

import math

import numpy as np


def half(size: int) -> np.ndarray:
    """Keep the first half (the smaller one if `size` is odd).

    Example:
      >>> half(5)
      array([ True,  True, False, False, False])
    """
    return np.arange(size) < size // 2


def alternating(size: int) -> np.ndarray:
    """Keep the dimensions of even index.

    Example:
      >>> alternating(5)
      array([ True, False,  True, False,  True])
    """
    return np.arange(size) % 2 == 0


def checkerboard(shape: tuple[int, ...]) -> np.ndarray:
    """Keep the fields of a chess board: where row + column is even, for every channel of an image `(rows, columns, channels)`.

    Args:
      shape: `(rows, columns)` or `(rows, columns, channels)`.

    Returns:
      The mask of the flattened image, of length rows · columns · channels.

    Example:
      >>> checkerboard((2, 3))
      array([ True, False,  True, False,  True, False])
    """
    rows, columns = shape[:2]
    fields = np.add.outer(np.arange(rows), np.arange(columns)) % 2 == 0
    return np.repeat(fields.ravel(), math.prod(shape[2:]))


def channels(shape: tuple[int, ...]) -> np.ndarray:
    """Keep the first half of the channels everywhere (the smaller half if their number is odd).

    Args:
      shape: `(..., channels)`, such as that of an image.

    Returns:
      The mask of the flattened event.

    Example:
      >>> channels((1, 2, 3))
      array([ True, False, False,  True, False, False])
    """
    return np.tile(half(shape[-1]), math.prod(shape[:-1]))
