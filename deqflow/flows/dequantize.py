"""From integers to real numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Real

from deqflow.flows.bijector import Bijector, Transformed, check_event


class Dequantize(Bijector):
    """Uniform dequantisation: `z = x + u` with `u` uniform on [0, 1), inverted by `x = floor(z)`.

    A density `p` of z bounds the probability of the integers x from below, `log P(x) >= E_u log p(x + u)`, so that the
    log-likelihood of the dequantised data is a bound on that of the data. The log-determinant is zero. The inverse is exact:
    floor(x + u) is x, also after rounding to the precision of the numbers. What is not an integer of `0 .. levels - 1` becomes NaN.

    Args:
      event_shape: shape of one sample.
      levels: number of values that x takes, 2 or more.

    Raises:
      ValueError: if there are fewer than two levels.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> dequantize = Dequantize((3,), levels=17)
      >>> z = dequantize.forward_and_log_det(jnp.array([[0, 7, 16]]), key=jax.random.key(0)).value
      >>> dequantize.inverse_and_log_det(z).value
      Array([[ 0.,  7., 16.]], dtype=float32)

    Theis, van den Oord, Bethge: A note on the evaluation of generative models. ICLR 2016.
    """

    def __init__(self, event_shape: tuple[int, ...], *, levels: int) -> None:
        if levels < 2:
            raise ValueError(f"levels must be 2 or more, got {levels}")
        self.event_shape = event_shape
        self.levels = levels

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
        noisy = x + jax.random.uniform(key, x.shape, x.dtype)
        noisy = jnp.where(noisy < x + 1, noisy, x)  # for large x the sum may round up to the next integer
        return Transformed(jnp.where(valid, noisy, jnp.nan), jnp.zeros(x.shape[0], x.dtype), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        """Round down, and clip to the levels what lies outside them; the value is a whole number of floating type."""
        check_event(self, z)
        return Transformed(jnp.clip(jnp.floor(z), 0, self.levels - 1), jnp.zeros(z.shape[0], z.dtype), {})
