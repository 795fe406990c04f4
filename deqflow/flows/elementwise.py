"""Element-wise bijectors without parameters."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.bijector import Bijector, Transformed, check_event


class Affine(Bijector):
    """A fixed change of units, the same for every dimension: `z = scale x + shift`.

    The log-determinant is `D log |scale|`, with D the number of dimensions. `ActNorm` is the trainable one.

    Args:
      event_shape: shape of one sample.
      scale: any number but zero.
      shift: in units of the latent.

    Raises:
      ValueError: if `scale` is zero or not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> Affine((2,), scale=2.0, shift=1.0).forward_and_log_det(jnp.array([[0.0, 3.0]])).value
      Array([[1., 7.]], dtype=float32)
    """

    def __init__(self, event_shape: tuple[int, ...], *, scale: float, shift: float = 0.0) -> None:
        if scale == 0 or not math.isfinite(scale):
            raise ValueError(f"scale must be finite and not zero, got {scale}")
        self.event_shape = event_shape
        self.scale = scale
        self.shift = shift

    def forward_and_log_det(
        self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        return Transformed(self.scale * x + self.shift, self._log_det(x), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)
        return Transformed((z - self.shift) / self.scale, -self._log_det(z), {})

    def _log_det(self, x: Array) -> Array:
        return jnp.full(x.shape[0], math.prod(self.event_shape) * math.log(abs(self.scale)), x.dtype)


class Logit(Bijector):
    """From the unit interval to the real line: `z = logit(λ + (1 - 2λ) x)`.

    With `p = λ + (1 - 2λ) x` the log-determinant is `Σ log(1 - 2λ) - log p - log(1 - p)`. The margin λ keeps the logit finite at
    `x = 0` and `x = 1`. Where p leaves the unit interval there is no logit and the answer is NaN.

    Args:
      event_shape: shape of one sample.
      margin: λ, in (0, 1/2); of the order of 1e-6 to 0.05.

    Raises:
      ValueError: if `margin` is not in (0, 1/2).

    Example:
      >>> import jax.numpy as jnp
      >>> Logit((2,), margin=0.1).forward_and_log_det(jnp.array([[0.5, 0.5]])).value
      Array([[0., 0.]], dtype=float32)

    Papadopoulos, Pavlakou, Murray: Masked autoregressive flow for density estimation. NeurIPS 2017.
    """

    def __init__(self, event_shape: tuple[int, ...], *, margin: float) -> None:
        if not 0 < margin < 0.5:
            raise ValueError(f"margin must be > 0 and < 0.5, got {margin}")
        self.event_shape = event_shape
        self.margin = margin

    def forward_and_log_det(
        self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        slope = 1 - 2 * self.margin
        # 1 - p from 1 - x, not from p: the difference loses no digits as x approaches 1.
        log_p, log_q = jnp.log(self.margin + slope * x), jnp.log(self.margin + slope * (1 - x))
        return Transformed(log_p - log_q, _sum_event(math.log(slope) - log_p - log_q), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        """Map latent to data; the value lies within `margin / (1 - 2 margin)` of [0, 1]."""
        check_event(self, z)
        slope = 1 - 2 * self.margin
        x = (nnx.sigmoid(z) - self.margin) / slope
        return Transformed(x, _sum_event(nnx.log_sigmoid(z) + nnx.log_sigmoid(-z) - math.log(slope)), {})


class Tanh(Bijector):
    """From the real line to the interval (-1, 1): `z = tanh x`.

    The log-determinant is `Σ 2 (log 2 - x - softplus(-2x))`, which neither overflows nor cancels. The inverse of what lies outside of
    the interval is NaN.

    Args:
      event_shape: shape of one sample.

    Example:
      >>> import jax.numpy as jnp
      >>> print(Tanh((1,)).forward_and_log_det(jnp.array([[50.0]])).log_det.round(2))
      [-98.61]
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        self.event_shape = event_shape

    def forward_and_log_det(
        self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        return Transformed(jnp.tanh(x), _sum_event(2 * (math.log(2) - x - nnx.softplus(-2 * x))), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)
        return Transformed(jnp.arctanh(z), _sum_event(-jnp.log1p(-z) - jnp.log1p(z)), {})


class LeakyReLU(Bijector):
    """A kink at zero: `z = x` where x is positive, `slope · x` elsewhere.

    Args:
      event_shape: shape of one sample.
      slope: on the negative side.

    Raises:
      ValueError: if `slope` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> LeakyReLU((2,), slope=0.5).forward_and_log_det(jnp.array([[1.0, -1.0]])).value
      Array([[ 1. , -0.5]], dtype=float32)
    """

    def __init__(self, event_shape: tuple[int, ...], *, slope: float = 0.1) -> None:
        if not slope > 0:
            raise ValueError(f"slope must be > 0, got {slope}")
        self.event_shape = event_shape
        self.slope = slope

    def forward_and_log_det(
        self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        return Transformed(jnp.where(x > 0, x, self.slope * x), self._log_det(x), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)
        return Transformed(jnp.where(z > 0, z, z / self.slope), -self._log_det(z), {})

    def _log_det(self, x: Array) -> Array:
        return _sum_event(jnp.where(x > 0, jnp.zeros((), x.dtype), math.log(self.slope)))


def _sum_event(x: jax.Array) -> jax.Array:
    """Sum over everything but the batch."""
    return x.reshape(x.shape[0], -1).sum(1)
