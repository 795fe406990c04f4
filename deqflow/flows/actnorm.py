"""A trainable scale and shift of every dimension."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.bijector import Bijector, DataDependent, Transformed, check_event


class ActNorm(Bijector, DataDependent):
    """A trainable scale and shift along the last axis: `z = exp(log_scale) x + shift`.

    It starts as the identity; `initialize` sets it so that a batch of data gets mean zero and standard deviation
    `exp(initial_log_scale)`. The log-determinant is the sum of `log_scale`, times the number of positions if the event has more
    than one axis.

    Args:
      event_shape: shape of one sample; the last axis is the one with parameters.
      initial_log_scale: log of the standard deviation after initialisation. Larger than 0 spreads the data, which lets the
        networks that follow tell neighbouring points apart.

    Example:
      >>> import jax.numpy as jnp
      >>> norm = ActNorm((1,))
      >>> norm.initialize(jnp.array([[1.0], [3.0]]))
      >>> norm.forward_and_log_det(jnp.array([[3.0]])).value
      Array([[1.]], dtype=float32)

    Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions. NeurIPS 2018.
    """

    def __init__(self, event_shape: tuple[int, ...], *, initial_log_scale: float = 0.0) -> None:
        self.event_shape = event_shape
        self.initial_log_scale = initial_log_scale
        self.log_scale = nnx.Param(jnp.zeros(event_shape[-1]))
        self.shift = nnx.Param(jnp.zeros(event_shape[-1]))

    def initialize(self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> None:
        """Normalise `x`; a dimension that does not vary keeps its scale."""
        check_event(self, x)
        axes = tuple(range(x.ndim - 1))
        deviation = x.std(axes)
        log_scale = self.initial_log_scale - jnp.log(jnp.where(deviation > 0, deviation, 1))
        self.log_scale[...] = log_scale.astype(self.log_scale.dtype)
        self.shift[...] = (-jnp.exp(log_scale) * x.mean(axes)).astype(self.shift.dtype)

    def forward_and_log_det(
        self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        return Transformed(x * jnp.exp(self.log_scale[...]) + self.shift[...], self._log_det(x), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)
        return Transformed((z - self.shift[...]) * jnp.exp(-self.log_scale[...]), -self._log_det(z), {})

    def _log_det(self, x: Array) -> Array:
        positions = x[0].size // x.shape[-1]
        return jnp.full(x.shape[0], positions * self.log_scale[...].sum())
