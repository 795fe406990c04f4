"""Monotone rational-quadratic splines."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# No bin is narrower than this part of an equal share, and no slope smaller than this: what keeps the spline invertible in float32.
_LEAST_SHARE = 1e-2
_LEAST_SLOPE = 1e-3


class Spline(NamedTuple):
    """An increasing function of one variable: rational-quadratic on `bins` intervals, the identity outside of `[-bound, bound]`.

    Attributes:
      widths: of the intervals.
      heights: of their images.
      slopes: at the knots between them; at the ends they are 1.
    """

    widths: Float[Array, "*batch bins"]
    heights: Float[Array, "*batch bins"]
    slopes: Float[Array, "*batch bins-1"]

    @classmethod
    def of(cls, parameters: Float[Array, "*batch numbers"], bound: float) -> "Spline":
        """The spline of `3 bins - 1` unbounded numbers; that of zeros is the identity."""
        bins = (parameters.shape[-1] + 1) // 3
        widths, heights, slopes = jnp.split(parameters, [bins, 2 * bins], axis=-1)

        def shares(numbers: Array) -> Array:
            return 2 * bound * (_LEAST_SHARE / bins + (1 - _LEAST_SHARE) * jax.nn.softmax(numbers, axis=-1))

        zero = math.log(math.expm1(1 - _LEAST_SLOPE))
        return cls(shares(widths), shares(heights), _LEAST_SLOPE + jax.nn.softplus(slopes + zero))

    def __call__(self, x: Float[Array, "*batch"], bound: float) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """The image of x and the logarithm of the slope there.

        y = y_k + h (s θ² + d_k θ(1-θ)) / (s + (d_k + d_{k+1} - 2s) θ(1-θ)),   θ = (x - x_k) / w,   s = h / w
        """
        inside, x_in = _inside(x, bound)
        piece = self._piece(x_in, self.widths, bound)
        theta = _clipped((x_in - piece.x) / piece.width, 0, 1)
        y = piece.y + piece.height * (piece.secant * theta**2 + piece.left * theta * (1 - theta)) / piece.denominator(theta)
        return jnp.where(inside, _clipped(y, -bound, bound), x), jnp.where(inside, piece.log_slope(theta), 0)

    def inverse(self, y: Float[Array, "*batch"], bound: float) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """What has the image y, and the logarithm of the slope of the inverse there: the root of a quadratic in θ, in its stable form."""
        inside, y_in = _inside(y, bound)
        piece = self._piece(y_in, self.heights, bound)
        rise = y_in - piece.y
        bend = rise * (piece.left + piece.right - 2 * piece.secant)
        a = bend + piece.height * (piece.secant - piece.left)
        b = piece.height * piece.left - bend
        c = -piece.secant * rise
        discriminant = b * b - 4 * a * c
        root = jnp.where(discriminant > 0, jnp.sqrt(jnp.where(discriminant > 0, discriminant, 1)), 0)
        # Of the two ways to write the root, the one in which nothing cancels. Where b is negative, a is positive.
        theta = jnp.where(b >= 0, -2 * c / jnp.where(b >= 0, b + root, 1), (root - b) / jnp.where(b >= 0, 1, 2 * a))
        theta = _clipped(theta, 0, 1)
        x = _clipped(piece.x + theta * piece.width, -bound, bound)
        return jnp.where(inside, x, y), jnp.where(inside, -piece.log_slope(theta), 0)

    def _piece(self, value: Array, sizes: Array, bound: float) -> "_Piece":
        """The interval in which `value` lies, of those with these sizes.

        Its numbers are picked by a sum over all, with one that counts: on a CPU the derivative of an index costs several times as much.
        """
        ends = jnp.cumsum(sizes, axis=-1)[..., :-1] - bound
        number = jnp.sum(value[..., None] >= ends, axis=-1)
        chosen = jax.nn.one_hot(number, sizes.shape[-1], dtype=value.dtype)
        before = jnp.cumsum(chosen[..., ::-1], axis=-1)[..., ::-1] - chosen  # ones for the intervals below

        def pick(numbers: Array) -> Array:
            return jnp.sum(chosen * numbers, axis=-1)

        one = jnp.ones_like(self.slopes[..., :1])
        left, right = jnp.concatenate([one, self.slopes], axis=-1), jnp.concatenate([self.slopes, one], axis=-1)
        width, height = pick(self.widths), pick(self.heights)
        x, y = (jnp.sum(before * sizes, axis=-1) - bound for sizes in (self.widths, self.heights))
        return _Piece(x, y, width, height, height / width, pick(left), pick(right))


class _Piece(NamedTuple):
    x: Array
    y: Array
    width: Array
    height: Array
    secant: Array
    left: Array
    right: Array

    def denominator(self, theta: Array) -> Array:
        return self.secant + (self.left + self.right - 2 * self.secant) * theta * (1 - theta)

    def log_slope(self, theta: Array) -> Array:
        slopes = self.right * theta**2 + 2 * self.secant * theta * (1 - theta) + self.left * (1 - theta) ** 2
        return 2 * jnp.log(self.secant) + jnp.log(slopes) - 2 * jnp.log(self.denominator(theta))


def _inside(value: Array, bound: float) -> tuple[Array, Array]:
    """Where a value lies within the bounds, and the value there and zero elsewhere, so that neither branch of a choice is undefined."""
    inside = jnp.abs(value) <= bound
    return inside, jnp.where(inside, value, 0)


def _clipped(value: jax.Array, low: float, high: float) -> jax.Array:
    """What rounding has put outside of an interval, put back, with the derivative of what was not rounded."""
    return value + lax.stop_gradient(jnp.clip(value, low, high) - value)
