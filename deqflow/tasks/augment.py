"""Random changes of training images that leave their class as it is."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Key, Num

from deqflow.registry import Range, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """Random translations and reflections of images, drawn for each one.

    Args:
      shift: pixels by which an image moves at most, down or up and right or left; zeros come in from the border.
      mirror: whether left and right are exchanged in half of the images.

    Raises:
      ValueError: if `shift` is negative.

    Example:
      >>> image = jnp.arange(1, 5).reshape(1, 2, 2, 1)
      >>> print(Augment(shift=1)(image, jax.random.key(4))[0, :, :, 0])
      [[0 1]
       [0 3]]

    Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", 2012.
    """

    shift: Annotated[int, Range(ge=0)] = 0
    mirror: bool = False

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def __call__(self, x: Num[Array, "batch height width channels"], key: Key[Array, ""]) -> Num[Array, "batch height width channels"]:
        """The images, each changed in its own way."""
        batch, height, width, channels = x.shape
        where, side = jax.random.split(key)
        if self.mirror:
            x = jnp.where(jax.random.bernoulli(side, 0.5, (batch, 1, 1, 1)), x[:, :, ::-1], x)
        s = self.shift
        padded = jnp.pad(x, ((0, 0), (s, s), (s, s), (0, 0)))
        corners = jax.random.randint(where, (batch, 2), 0, 2 * s + 1)
        cut = jax.vmap(lambda image, corner: lax.dynamic_slice(image, (*corner, 0), (height, width, channels)))
        return cut(padded, corners) if s else x
