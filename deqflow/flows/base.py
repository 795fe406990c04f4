"""Base distributions of flows."""

import abc
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key


class Distribution(nnx.Module):
    """A density that can be evaluated and sampled in closed form.

    Attributes:
      event_shape: static shape of one sample.
    """

    event_shape: tuple[int, ...]

    @abc.abstractmethod
    def log_prob(self, z: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
        """The log-density of each sample, in nats."""

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""], n: int, *, temperature: float = 1.0) -> Float[Array, "n *event"]:
        """Draw `n` samples; a temperature below 1 keeps them nearer to the centre."""


class StandardNormal(Distribution):
    """Independent standard normal variables: `log p(z) = -‖z‖²/2 - D/2 log 2π`.

    Args:
      event_shape: shape of one sample.

    Example:
      >>> import jax.numpy as jnp
      >>> print(StandardNormal((2,)).log_prob(jnp.zeros((1, 2))))
      [-1.837877]
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        self.event_shape = event_shape

    def log_prob(self, z: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
        dimensions = math.prod(self.event_shape)
        return -0.5 * (z * z).reshape(z.shape[0], dimensions).sum(1) - 0.5 * dimensions * math.log(2 * math.pi)

    def sample(self, key: Key[Array, ""], n: int, *, temperature: float = 1.0) -> Float[Array, "n *event"]:
        """Draw `n` samples of standard deviation `temperature`."""
        return temperature * jax.random.normal(key, (n, *self.event_shape), jnp.result_type(float))
