"""Base distributions of flows."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.shapes import Shape, check_batch


class Distribution(nnx.Module):
    """A density that can be evaluated and sampled in closed form.

    Attributes:
      event_shape: static shape of one sample; a tuple of shapes where a sample is a tuple of arrays.
      reparametrized: whether the derivative of a sample with respect to the parameters is that of the distribution.
    """

    event_shape: Shape
    reparametrized: bool = True

    @abc.abstractmethod
    def log_prob(self, z: Any) -> Float[Array, " batch"]:
        """The log-density of each sample of `(batch, *event_shape)`, in nats."""

    @abc.abstractmethod
    def sample(self, key: Key[Array, ""], n: int, *, temperature: float | Float[Array, ""] = 1.0) -> Any:
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

    def sample(self, key: Key[Array, ""], n: int, *, temperature: float | Float[Array, ""] = 1.0) -> Float[Array, "n *event"]:
        """Draw `n` samples of standard deviation `temperature`."""
        return temperature * jax.random.normal(key, (n, *self.event_shape), jnp.result_type(float))


class Uniform(Distribution):
    """Independent uniform variables on an interval: `log p(z) = -D log(high - low)` inside, `-inf` outside.

    Args:
      event_shape: shape of one sample.
      low: lower end.
      high: upper end.

    Raises:
      ValueError: if `high` is not above `low`.

    Example:
      >>> import jax.numpy as jnp
      >>> print(Uniform((2,), low=0.0, high=2.0).log_prob(jnp.array([[1.0, 1.0], [1.0, 3.0]])))
      [-1.3862944       -inf]
    """

    def __init__(self, event_shape: tuple[int, ...], *, low: float = 0.0, high: float = 1.0) -> None:
        if not high > low:
            raise ValueError(f"high must be above low, got low={low} and high={high}")
        self.event_shape = event_shape
        self.low = low
        self.high = high

    def log_prob(self, z: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
        flat = z.reshape(z.shape[0], -1)
        inside = jnp.all((flat >= self.low) & (flat <= self.high), axis=1)
        return jnp.where(inside, jnp.asarray(-flat.shape[1] * math.log(self.high - self.low), z.dtype), -jnp.inf)

    def sample(self, key: Key[Array, ""], n: int, *, temperature: float | Float[Array, ""] = 1.0) -> Float[Array, "n *event"]:
        """Draw `n` samples, from the middle part of the interval that is `temperature` times as long."""
        centre, half = (self.low + self.high) / 2, temperature * (self.high - self.low) / 2
        return jax.random.uniform(key, (n, *self.event_shape), jnp.result_type(float), centre - half, centre + half)


class StudentT(Distribution):
    """Independent variables of Student's t distribution: heavier tails than the normal distribution's.

        log p(z) = Σ_i log Γ((ν+1)/2) - log Γ(ν/2) - log(νπ)/2 - (ν+1)/2 log(1 + z_i²/ν)

    Args:
      event_shape: shape of one sample.
      degrees: ν, the degrees of freedom.

    Raises:
      ValueError: if `degrees` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> print(StudentT((1,), degrees=1.0).log_prob(jnp.zeros((1, 1))))      # Cauchy: -log π
      [-1.1447299]

    Alexanderson and Henter: Robust model training and generalisation with Studentising flows. 2020.
    """

    def __init__(self, event_shape: tuple[int, ...], *, degrees: float = 5.0) -> None:
        if not degrees > 0:
            raise ValueError(f"degrees must be > 0, got {degrees}")
        self.event_shape = event_shape
        self.degrees = degrees

    def log_prob(self, z: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
        nu = self.degrees
        constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - math.log(nu * math.pi) / 2
        flat = z.reshape(z.shape[0], -1)
        return flat.shape[1] * constant - (nu + 1) / 2 * jnp.log1p(flat**2 / nu).sum(1)

    def sample(self, key: Key[Array, ""], n: int, *, temperature: float | Float[Array, ""] = 1.0) -> Float[Array, "n *event"]:
        """Draw `n` samples, scaled by `temperature`."""
        return temperature * jax.random.t(key, self.degrees, (n, *self.event_shape), jnp.result_type(float))


class Mixture(Distribution):
    """A mixture of normal distributions with trainable weights, means and standard deviations.

        log p(z) = log Σ_k w_k N(z; μ_k, diag σ_k²)

    Args:
      event_shape: shape of one sample.
      components: their number.
      rngs: where the first means are drawn from, standard normal; weights start equal and standard deviations at 1.

    Raises:
      ValueError: if there is no component.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> mixture = Mixture((2,), components=3, rngs=nnx.Rngs(0))
      >>> mixture.log_prob(mixture.sample(jax.random.key(0), 5)).shape
      (5,)

    Izmailov, Kirichenko, Finzi and Wilson: Semi-supervised learning with normalizing flows. ICML 2020.
    """

    def __init__(self, event_shape: tuple[int, ...], *, components: int, rngs: nnx.Rngs) -> None:
        if components < 1:
            raise ValueError(f"a mixture needs one component or more, got {components}")
        self.event_shape = event_shape
        self.reparametrized = False  # which component a sample comes from is no differentiable function of the weights
        self.logits = nnx.Param(jnp.zeros(components))
        self.means = nnx.Param(jax.random.normal(rngs.params(), (components, *event_shape)))
        self.log_scales = nnx.Param(jnp.zeros((components, *event_shape)))

    def log_prob(self, z: Float[Array, "batch *event"]) -> Float[Array, " batch"]:
        means, log_scales = (parameter[...].reshape(len(parameter), -1) for parameter in (self.means, self.log_scales))
        distance = (z.reshape(z.shape[0], 1, -1) - means) * jnp.exp(-log_scales)
        components = -0.5 * (distance**2).sum(2) - log_scales.sum(1) - 0.5 * means.shape[1] * math.log(2 * math.pi)
        return jax.nn.logsumexp(components + jax.nn.log_softmax(self.logits[...]), axis=1)

    def sample(self, key: Key[Array, ""], n: int, *, temperature: float | Float[Array, ""] = 1.0) -> Float[Array, "n *event"]:
        """Draw `n` samples; `temperature` scales the standard deviations, and leaves means and weights."""
        which, noise = jax.random.split(key)
        chosen = jax.random.categorical(which, self.logits[...], shape=(n,))
        scale = temperature * jnp.exp(self.log_scales[...])[chosen]
        return self.means[...][chosen] + scale * jax.random.normal(noise, scale.shape, scale.dtype)


class Product(Distribution):
    """Independent distributions of the parts of a tuple, such as the latents of a multiscale flow: `log p(z) = Σ_k log p_k(z_k)`.

    Args:
      parts: the distribution of each part.

    Raises:
      ValueError: if there is no part.

    Example:
      >>> import jax
      >>> base = Product([StandardNormal((2, 2, 2)), StudentT((8,))])
      >>> fine, coarse = base.sample(jax.random.key(0), 5)
      >>> fine.shape, coarse.shape, base.log_prob((fine, coarse)).shape
      ((5, 2, 2, 2), (5, 8), (5,))
    """

    def __init__(self, parts: Sequence[Distribution]) -> None:
        if not parts:
            raise ValueError("a product needs at least one distribution")
        self.event_shape = tuple(part.event_shape for part in parts)
        self.reparametrized = all(part.reparametrized for part in parts)
        self.parts = nnx.List(parts)

    def log_prob(self, z: Any) -> Float[Array, " batch"]:
        check_batch("Product", z, self.event_shape)
        total: Any = 0.0  # takes the precision of what is added
        for part, value in zip(self.parts, z, strict=True):
            total = total + part.log_prob(value)
        return total

    def sample(self, key: Key[Array, ""], n: int, *, temperature: float | Float[Array, ""] = 1.0) -> Any:
        """Draw `n` samples of each part, all at one temperature."""
        keys = jax.random.split(key, len(self.parts))
        return tuple(part.sample(k, n, temperature=temperature) for part, k in zip(self.parts, keys, strict=True))
