"""Flows whose latents leave at several scales."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from deqflow.flows.bijector import Bijector, DataDependent, Transformed, check_event, check_latent, split_key
from deqflow.flows.shapes import Shape, of_an_array


class Multiscale(Bijector, DataDependent):
    """Bijectors one after the other, between which half the channels leave: a latent for each level, from fine to coarse.

    With `h_0 = x`, level k makes `(h_k, z_k) = f_k(h_{k-1})`, where `h_k` is the first half of the last axis and `z_k` the second; the last
    level makes `z_n` of all that is left. The latent is the tuple `(z_1, ..., z_n)`, for which `Product` is a base. What left early is done
    with the cheap, local work of the first levels, so that depth goes where it serves the whole image.

    The log-determinant is the sum of the levels'; the diagnostics of level `k`, counted from 0, are found under `str(k)`.

    Args:
      levels: one bijector or more, usually a `Chain` of a `Squeeze` and couplings each, taking what the level before passes on.

    Raises:
      ValueError: if there is no level, a level before the last makes an odd number of channels or no single array, or the next one does not
        take half of them.

    Example:
      >>> import jax.numpy as jnp
      >>> from deqflow.flows import Flow, Product, Squeeze, StandardNormal
      >>> levels = Multiscale([Squeeze((4, 4, 1)), Squeeze((2, 2, 2))])
      >>> levels.latent_shape
      ((2, 2, 2), (1, 1, 8))
      >>> base = Product([StandardNormal(shape) for shape in levels.latent_shape])
      >>> Flow(base, levels).log_prob(jnp.zeros((3, 4, 4, 1))).shape
      (3,)

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP. ICLR 2017.
    """

    def __init__(self, levels: Sequence[Bijector]) -> None:
        if not levels:
            raise ValueError("a multiscale flow needs at least one level")
        halves = [_half(index, level.latent_shape) for index, level in enumerate(levels[:-1])]
        for index, (half, level) in enumerate(zip(halves, levels[1:], strict=True)):
            if level.event_shape != half:
                raise ValueError(f"level {index + 1} takes events of shape {level.event_shape}, level {index} passes on {half}")
        self.event_shape = levels[0].event_shape
        self._latent_shape = (*halves, levels[-1].latent_shape)
        self.levels = nnx.List(levels)

    def initialize(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> None:
        """Initialise every level from what the levels before it pass on of `x`."""
        for index, level in enumerate(self.levels):
            level_key = split_key(key, index)
            if isinstance(level, DataDependent):
                level.initialize(x, condition=condition, key=level_key)
            if index < len(self.levels) - 1:
                x, _ = jnp.split(level.forward_and_log_det(x, condition=condition, key=level_key).value, 2, axis=-1)

    def forward_and_log_det(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Transformed:
        check_event(self, x)
        latents: list[Any] = []
        total: Any = 0.0  # takes the precision of what is added
        diagnostics: dict[str, Any] = {}
        for index, level in enumerate(self.levels):
            x, log_det, report = level.forward_and_log_det(x, condition=condition, key=split_key(key, index))
            if index < len(self.levels) - 1:
                x, left = jnp.split(x, 2, axis=-1)
                latents.append(left)
            total = total + log_det
            diagnostics |= {str(index): report} if report else {}
        return Transformed((*latents, x), total, diagnostics)

    def inverse_and_log_det(self, z: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Transformed:
        check_latent(self, z)
        x = z[-1]
        total: Any = 0.0  # takes the precision of what is added
        diagnostics: dict[str, Any] = {}
        for index, level in reversed(list(enumerate(self.levels))):
            if index < len(self.levels) - 1:
                x = jnp.concatenate([x, z[index]], axis=-1)
            x, log_det, report = level.inverse_and_log_det(x, condition=condition, key=split_key(key, index))
            total = total + log_det
            diagnostics |= {str(index): report} if report else {}
        return Transformed(x, total, diagnostics)


def _half(index: int, shape: Shape) -> Shape:
    """What is left of a level's latents when half their channels have gone."""
    if not of_an_array(shape) or not shape:
        raise ValueError(f"level {index} must make one array with channels, of which half leave, but makes latents of shape {shape}")
    *positions, channels = shape
    if channels % 2:
        raise ValueError(
            f"level {index} makes latents of shape {shape}, whose {channels} channels cannot be halved; begin the level with a Squeeze, "
            "which makes four of each, or give the events an even number of channels"
        )
    return (*positions, channels // 2)
