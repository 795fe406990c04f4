"""From one resolution to another."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deqflow.nn.conv import Images
from deqflow.nn.linear import Linear
from deqflow.nn.norm import GroupNorm


class Resample(nnx.Module):
    """Images of another resolution and number of channels.

    Every octave down is a 2 x 2 convolution of stride 2, normalised, with a relu between two of them. The way up is a 1 x 1 convolution,
    normalised, whose pixels are then repeated. As their windows do not overlap, these convolutions are products of matrices: their
    derivatives are as fast inside a solver's loop as outside of it, which those of other strided convolutions are not on the CPU.

    Args:
      inputs: channels of the input.
      outputs: channels of the output.
      octaves: how often the resolution is halved; negative to double it.
      groups: groups of the normalisations; must divide `inputs`, where there are several octaves down, and `outputs`.
      rngs: random streams; `params` is used.

    Example:
      >>> x = jnp.ones((1, 8, 8, 4))
      >>> Resample(4, 6, octaves=2, groups=2, rngs=nnx.Rngs(0))(x).shape
      (1, 2, 2, 6)
      >>> Resample(4, 6, octaves=-1, groups=2, rngs=nnx.Rngs(0))(x).shape
      (1, 16, 16, 6)

    Bai, Koltun and Kolter, "Multiscale deep equilibrium models", 2020, fuse scales in this way, with 3 x 3 convolutions.
    """

    def __init__(self, inputs: int, outputs: int, *, octaves: int, groups: int, rngs: nnx.Rngs) -> None:
        self.octaves = octaves
        widths = [inputs] * max(octaves, 1) + [outputs]
        window = 4 if octaves > 0 else 1
        self.maps = nnx.List([Linear(window * a, b, bias=False, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.norms = nnx.List([GroupNorm(width, groups) for width in widths[1:]])

    def __call__(self, x: Images) -> Float[Array, "batch rows columns outputs"]:
        for index, (mix, norm) in enumerate(zip(self.maps, self.norms, strict=True)):
            x = jax.nn.relu(x) if index else x
            x = norm(mix(windows(x, 2) if self.octaves > 0 else x))
        return _repeated(x, 2 ** max(-self.octaves, 0))


def windows(x: Images, size: int) -> Float[Array, "batch rows columns window_channels"]:
    """The pixels of every `size x size` window as channels of one; zeros fill up the last ones, where `size` does not divide the sides.

    Example:
      >>> windows(jnp.ones((2, 8, 7, 3)), 2).shape
      (2, 4, 4, 12)
    """
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)))
    rows, columns = x.shape[1] // size, x.shape[2] // size
    x = x.reshape(batch, rows, size, columns, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, size * size * channels)


def _repeated(x: Images, times: int) -> Float[Array, "batch rows columns channels"]:
    """Every pixel as a `times x times` tile."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, times, width, times, channels))
    return x.reshape(batch, times * height, times * width, channels)
