"""A density: a base distribution seen through a bijector."""

import math
import warnings
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.base import Distribution
from deqflow.flows.bijector import Bijector
from deqflow.implicit import Stats


class Flow(nnx.Module):
    """The density of `x` when `f(x)` follows a base distribution: `log p(x) = log p_base(f(x)) + log |det ∂f/∂x|`.

    Where a bijector solves an equation that does not converge, the methods warn; inside `jit`, where they cannot, what failed is NaN, and
    the bijector's diagnostics say the rest.

    Args:
      base: the distribution of the latent.
      bijector: f, from data to latent.

    Raises:
      ValueError: if the base's events have not the shape of the bijector's latent.

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
        if base.event_shape != bijector.latent_shape:
            raise ValueError(f"the base has events of shape {base.event_shape}, the bijector's latents have shape {bijector.latent_shape}")
        self.base = base
        self.bijector = bijector

    def log_prob(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Float[Array, " batch"]:
        """The log-density of data `(batch, *event_shape)`, in nats; with dequantisation, a bound on the log-probability.

        Args:
          x: data.
          condition: `(batch, features)`, if the bijector is conditional.
          key: for what is random in the bijector.
        """
        return self.log_prob_and_diagnostics(x, condition=condition, key=key)[0]

    def log_prob_and_diagnostics(
        self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, " batch"], dict[str, Any]]:
        """The log-density, and what the bijector reports of its solves and estimates; see `log_prob` and `Transformed`."""
        latent, log_det, diagnostics = self.bijector.forward_and_log_det(x, condition=condition, key=key)
        _warn_of_unsolved(diagnostics)
        return self.base.log_prob(latent) + log_det, diagnostics

    def bits_per_dim(
        self, x: Any, *, levels: int | None = None, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch"]:
        """The negative log-density of data in bits for each of their D dimensions: `-log p(x) / (D log 2)`, one number per sample.

        Args:
          x: data.
          levels: for integers that were divided by their number of values before they came here, that number; the answer is then in units
            of the integers, larger by `log2 levels`. Where the bijector starts from integers (`Dequantize`), there is nothing to add.
          condition: `(batch, features)`, if the bijector is conditional.
          key: for what is random in the bijector.

        Example:
          >>> import jax.numpy as jnp
          >>> from deqflow.flows import Affine, Uniform
          >>> flow = Flow(Uniform((3,)), Affine((3,), scale=1.0))
          >>> print(flow.bits_per_dim(jnp.full((1, 3), 0.5), levels=256))    # uniform on 256 values
          [8.]
        """
        dimensions = sum(leaf[0].size for leaf in jax.tree.leaves(x))
        bits = -self.log_prob(x, condition=condition, key=key) / (dimensions * math.log(2))
        return bits if levels is None else bits + math.log2(levels)

    def sample(self, key: Key[Array, ""], n: int, *, temperature: float | Float[Array, ""] = 1.0, condition: Array | None = None) -> Any:
        """Draw `n` samples `(n, *event_shape)`.

        Args:
          key: randomness.
          n: how many; a condition has one row for each.
          temperature: standard deviation of the latent in units of the base's own; 1 samples the density itself.
          condition: `(n, features)`, if the bijector is conditional.
        """
        base_key, bijector_key = jax.random.split(key)
        latent = self.base.sample(base_key, n, temperature=temperature)
        value, _, diagnostics = self.bijector.inverse_and_log_det(latent, condition=condition, key=bijector_key)
        _warn_of_unsolved(diagnostics)
        return value

    def sample_and_log_prob(self, key: Key[Array, ""], n: int, *, condition: Array | None = None) -> tuple[Any, Float[Array, " batch"]]:
        """Draw `n` samples with their log-density, in one pass: `log p(x) = log p_base(z) - log |det ∂x/∂z|`.

        With dequantisation the log-density is that of the point before it was rounded.
        """
        base_key, bijector_key = jax.random.split(key)
        latent = self.base.sample(base_key, n)
        value, log_det, diagnostics = self.bijector.inverse_and_log_det(latent, condition=condition, key=bijector_key)
        _warn_of_unsolved(diagnostics)
        return value, self.base.log_prob(latent) - log_det


def _warn_of_unsolved(diagnostics: dict[str, Any]) -> None:
    """Warn if the statistics of a solve, somewhere in the diagnostics, say that samples did not converge."""
    for name, entry in diagnostics.items():
        if isinstance(entry, dict):
            _warn_of_unsolved(entry)
        elif isinstance(entry, Stats) and (unsolved := entry.unsolved()):
            warnings.warn(f"a bijector's equation was not solved ({name}): {unsolved}", stacklevel=3)
