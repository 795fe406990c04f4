"""A bijector read in the other direction."""

from typing import Any

from jaxtyping import Array, Key

from deqflow.flows.bijector import Bijector, Transformed


class Inverse(Bijector):
    """The inverse of a bijector: its `forward` is the other's `inverse`.

    The inverse of a masked autoregressive flow, fast to evaluate, is an inverse autoregressive flow, fast to sample from; that of a
    residual block is an equilibrium layer.

    Args:
      bijector: what to turn around.

    Example:
      >>> import jax.numpy as jnp
      >>> from deqflow.flows import Affine
      >>> Inverse(Affine((1,), scale=2.0)).forward_and_log_det(jnp.array([[4.0]])).value
      Array([[2.]], dtype=float32)
    """

    def __init__(self, bijector: Bijector) -> None:
        self.event_shape = bijector.latent_shape
        self._latent_shape = bijector.event_shape
        self.bijector = bijector

    def forward_and_log_det(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Transformed:
        return self.bijector.inverse_and_log_det(x, condition=condition, key=key)

    def inverse_and_log_det(self, z: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Transformed:
        return self.bijector.forward_and_log_det(z, condition=condition, key=key)
