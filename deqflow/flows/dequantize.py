"""From integers to real numbers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Real

from deqflow.flows.bijector import Bijector, Transformed, check_event
from deqflow.flows.flow import Flow


class Dequantize(Bijector):
    """Dequantisation: `z = x + u` with noise `u` on [0, 1), inverted by `x = floor(z)`.

    A density p of z bounds the probability of the integers x from below, whatever the density q of the noise,

        log P(x) >= E_q[log p(x + u) - log q(u | x)],

    so that the log-likelihood of the dequantised data is a bound on that of the data. The log-determinant is `-log q(u | x)`: zero for
    uniform noise, the default. Noise from a flow, trained along with p, makes variational dequantisation; the bound is tight where q is
    the density of `u` given `x` under p, which need not be flat. The inverse is exact: floor(x + u) is x, also after rounding to the
    precision of the numbers. What is not an integer of `0 .. levels - 1` becomes NaN.

    Args:
      event_shape: shape of one sample.
      levels: number of values that x takes, 2 or more.
      noise: a flow of r on the real line, of the same event shape, of which the noise is `u = sigmoid(r)`; `None` for uniform noise. It is
        conditioned on x, scaled to [-1, 1] and flattened, followed by the condition if there is one. It is a flow like any other: it
        costs one inverse pass, best of a bijector that is fast there.

    Raises:
      ValueError: if there are fewer than two levels, or the noise has another event shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> dequantize = Dequantize((3,), levels=17)
      >>> z = dequantize.forward_and_log_det(jnp.array([[0, 7, 16]]), key=jax.random.key(0)).value
      >>> dequantize.inverse_and_log_det(z).value
      Array([[ 0.,  7., 16.]], dtype=float32)

    Theis, van den Oord, Bethge: A note on the evaluation of generative models. ICLR 2016. Ho, Chen, Srinivas, Duan, Abbeel: Flow++:
    improving flow-based generative models with variational dequantization and architecture design. ICML 2019.
    """

    def __init__(self, event_shape: tuple[int, ...], *, levels: int, noise: Flow | None = None) -> None:
        if levels < 2:
            raise ValueError(f"levels must be 2 or more, got {levels}")
        if noise is not None and noise.base.event_shape != event_shape:
            raise ValueError(f"the noise has events of shape {noise.base.event_shape}, the data of shape {event_shape}")
        self.event_shape = event_shape
        self.levels = levels
        self.noise = noise

    def forward_and_log_det(
        self, x: Real[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        """Add noise to integers, given as integers or as floating-point numbers."""
        check_event(self, x)
        if key is None:
            raise ValueError("Dequantize adds random noise: pass key=jax.random.key(...)")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.result_type(float))
        valid = (x >= 0) & (x <= self.levels - 1) & (x == jnp.floor(x))
        u, log_det = self._draw(jnp.where(valid, x, 0), condition, key)
        # For large x the sum may round up to the next integer.
        noisy = jnp.minimum(x + u, jax.lax.stop_gradient(jnp.nextafter(x + 1, x)))
        return Transformed(jnp.where(valid, noisy, jnp.nan), log_det, {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        """Round down, and clip to the levels what lies outside them; the value is a whole number of floating type."""
        check_event(self, z)
        return Transformed(jnp.clip(jnp.floor(z), 0, self.levels - 1), jnp.zeros(z.shape[0], z.dtype), {})

    def _draw(self, x: Array, condition: Array | None, key: Key[Array, ""]) -> tuple[Array, Array]:
        """The noise, and minus its log-density."""
        if self.noise is None:
            return jax.random.uniform(key, x.shape, x.dtype), jnp.zeros(x.shape[0], x.dtype)
        scaled = (2 / (self.levels - 1) * x - 1).reshape(x.shape[0], -1)
        given = scaled if condition is None else jnp.concatenate([scaled, condition], axis=1)
        r, log_q = self.noise.sample_and_log_prob(key, x.shape[0], condition=given)
        slope = (nnx.log_sigmoid(r) + nnx.log_sigmoid(-r)).reshape(x.shape[0], -1).sum(1)
        return nnx.sigmoid(r).astype(x.dtype), (slope - log_q).astype(x.dtype)
