"""A density: a base distribution seen through a bijector."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.base import Distribution
from deqflow.flows.bijector import Bijector


class Flow(nnx.Module):
    """The density of `x` when `f(x)` follows a base distribution: `log p(x) = log p_base(f(x)) + log |det ∂f/∂x|`.

    Args:
      base: the distribution of the latent.
      bijector: f, from data to latent.

    Raises:
      ValueError: if the two differ in their event shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from deqflow.flows import Affine, StandardNormal
      >>> flow = Flow(StandardNormal((1,)), Affine((1,), scale=0.5))    # a normal distribution of standard deviation 2
      >>> print(flow.log_prob(jnp.array([[0.0]])))
      [-1.6120857]
      >>> flow.sample(jax.random.key(0), 3).shape
      (3, 1)

    Rezende, Mohamed: Variational inference with normalizing flows. ICML 2015.
    """

    def __init__(self, base: Distribution, bijector: Bijector) -> None:
        if base.event_shape != bijector.event_shape:
            raise ValueError(f"the base has events of shape {base.event_shape}, the bijector of shape {bijector.event_shape}")
        self.base = base
        self.bijector = bijector

    def log_prob(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Float[Array, " batch"]:
        """The log-density of data `(batch, *event_shape)`, in nats; with dequantisation, a bound on the log-probability.

        Args:
          x: data.
          condition: `(batch, features)`, if the bijector is conditional.
          key: for what is random in the bijector.
        """
        latent, log_det, _ = self.bijector.forward_and_log_det(x, condition=condition, key=key)
        return self.base.log_prob(latent) + log_det

    def sample(self, key: Key[Array, ""], n: int, *, temperature: float = 1.0, condition: Array | None = None) -> Any:
        """Draw `n` samples `(n, *event_shape)`.

        Args:
          key: randomness.
          n: how many; a condition has one row for each.
          temperature: standard deviation of the latent in units of the base's own; 1 samples the density itself.
          condition: `(n, features)`, if the bijector is conditional.
        """
        base_key, bijector_key = jax.random.split(key)
        latent = self.base.sample(base_key, n, temperature=temperature)
        return self.bijector.inverse_and_log_det(latent, condition=condition, key=bijector_key).value

    def sample_and_log_prob(self, key: Key[Array, ""], n: int, *, condition: Array | None = None) -> tuple[Any, Float[Array, " batch"]]:
        """Draw `n` samples with their log-density, in one pass: `log p(x) = log p_base(z) - log |det ∂x/∂z|`.

        With dequantisation the log-density is that of the point before it was rounded.
        """
        base_key, bijector_key = jax.random.split(key)
        latent = self.base.sample(base_key, n)
        value, log_det, _ = self.bijector.inverse_and_log_det(latent, condition=condition, key=bijector_key)
        return value, self.base.log_prob(latent) - log_det
