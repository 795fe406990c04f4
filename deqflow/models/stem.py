"""From raw images to the feature maps that an equilibrium layer takes."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from deqflow.nn import GroupNorm, windows


class ImageStem(nnx.Module):
    """Feature maps of raw images, on a grid `stride` times coarser.

    For each prime factor p of `stride` it takes windows of p x p pixels for one, then a 3 x 3 convolution, group normalisation and a relu.
    On the CPU the derivative of a strided convolution with windows that overlap takes several times as long.

    Args:
      width: channels of the feature maps.
      groups: groups of the normalisations; must divide `width`.
      stride: how much coarser the grid is.
      input_shape: `(height, width, channels)` of an image.
      levels: integer images hold `0 .. levels - 1` and are divided by `levels - 1`; `None` for real images, taken as they are.
      rngs: random streams; `params` is used.

    Example:
      >>> ImageStem(8, groups=4, stride=4, input_shape=(28, 28, 1), levels=256, rngs=nnx.Rngs(0))(jnp.ones((2, 28, 28, 1), jnp.uint8)).shape
      (2, 7, 7, 8)
    """

    def __init__(self, width: int, *, groups: int, stride: int, input_shape: tuple[int, ...], levels: int | None, rngs: nnx.Rngs) -> None:
        self.levels = levels
        self.factors = _prime_factors(stride) or (1,)
        channels = [input_shape[2], *(width for _ in self.factors)]
        self.convs = nnx.List([nnx.Conv(c * p * p, width, (3, 3), rngs=rngs) for c, p in zip(channels, self.factors, strict=False)])
        self.norms = nnx.List([GroupNorm(width, groups) for _ in self.factors])

    def __call__(self, x: Num[Array, "batch height width channels"]) -> Float[Array, "batch rows columns features"]:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.levels is not None:
            x = x / (self.levels - 1)
        x = x.astype(self.norms[0].scale.dtype)
        for p, conv, norm in zip(self.factors, self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(windows(x, p))))
        return x


def require_images(kind: str, input_shape: tuple[int, ...], classes: int | None) -> int:
    """The number of classes.

    Raises:
      ValueError: if the data, for a model of this kind, are not images or have no labels.
    """
    if len(input_shape) != 3:
        raise ValueError(f"{kind} takes images of shape (height, width, channels), got examples of shape {input_shape}")
    if classes is None:
        raise ValueError(f"{kind} needs labelled data, got a data set without classes")
    return classes


def _prime_factors(n: int) -> tuple[int, ...]:
    factor = next((p for p in range(2, n + 1) if n % p == 0), None)
    return () if factor is None else (factor, *_prime_factors(n // factor))
