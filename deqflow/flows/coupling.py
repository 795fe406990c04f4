"""Couplings: one part of the dimensions is transformed as the other part says."""

import abc
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from deqflow.flows.bijector import Bijector, Transformed, check_event
from deqflow.flows.spline import Spline
from deqflow.registry import Range, check_ranges


class Coupling(Bijector):
    """Transform some dimensions, each by itself, as a function of the others says.

    With `a` the dimensions that the mask keeps and `b` the others, `z_a = x_a`, `z_b = h(x_b; conditioner(x_a))` with an increasing h.

    Events may be of any rank. If the mask is the same at every position, as that of a vector or of an image's channels is, the conditioner
    takes what is kept along the last axis, and returns parameters for what is not: `(..., kept)` to `(..., numbers · transformed)`.
    Any other mask (a chess board on an image) leaves no array of the kept dimensions alone: the conditioner takes the whole event, with
    zeros for what is transformed, and returns parameters for every channel, `(..., numbers · channels)`.

    Attributes:
      mask: true where a dimension is kept, in the order of the flattened event.
      conditioner: any module `conditioner(kept, condition=..., key=...) -> parameters`.
      numbers: how many parameters h has, zeros making it the identity; along the last axis of what the conditioner returns, the first of
        every dimension come first, then the second of every dimension, and so on.
    """

    mask: tuple[bool, ...]
    conditioner: Callable[..., Array]
    numbers: int

    @abc.abstractmethod
    def transform(self, x: Float[Array, "*batch m"], parameters: Float[Array, "*batch n m"]) -> tuple[Array, Array]:
        """The value of h and the logarithm of its slope."""

    @abc.abstractmethod
    def untransform(self, z: Float[Array, "*batch m"], parameters: Float[Array, "*batch n m"]) -> tuple[Array, Array]:
        """The inverse of h and the logarithm of its slope."""

    def forward_and_log_det(
        self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        return self._apply(self.transform, x, condition, key)

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)
        return self._apply(self.untransform, z, condition, key)

    def _apply(self, h: Callable[..., tuple[Array, Array]], x: Array, condition: Array | None, key: Key[Array, ""] | None) -> Transformed:
        mask = np.array(self.mask).reshape(self.event_shape)
        rows = mask.reshape(-1, self.event_shape[-1])
        if (rows == rows[0]).all():
            kept, moved = _part(x, rows[0])
            value, log_slopes = h(moved, self._parameters(kept, moved, condition, key))
            value = _join(kept, value, rows[0])
        else:
            parameters = self._parameters(jnp.where(mask, x, 0), x, condition, key)
            # The identity where x is kept, so that h has a finite derivative there whatever the conditioner says.
            value, log_slopes = h(x, jnp.where(mask[..., None, :], 0, parameters))
            value, log_slopes = jnp.where(mask, x, value), jnp.where(mask, 0, log_slopes)
        return Transformed(value, log_slopes.sum(tuple(range(1, x.ndim))), {})

    def _parameters(self, kept: Array, moved: Array, condition: Array | None, key: Key[Array, ""] | None) -> Float[Array, "*batch n m"]:
        parameters = self.conditioner(kept, condition=condition, key=key)
        *positions, width = moved.shape
        expected = (*positions, self.numbers * width)
        if parameters.shape != expected:
            raise ValueError(f"the conditioner of this coupling must return shape {expected}, got {parameters.shape}")
        return parameters.reshape(*positions, self.numbers, width)


class AdditiveCoupling(Coupling):
    """Shift some dimensions by a function of the others: `z_a = x_a`, `z_b = x_b + t(x_a)`. Volume is preserved.

    Args:
      mask: true where a dimension is kept, of the shape of an event.
      conditioner: t, any module `conditioner(kept, condition=..., key=...) -> (..., transformed)`.

    Raises:
      ValueError: if the mask keeps all dimensions or none.

    Example:
      >>> import jax.numpy as jnp
      >>> from deqflow.flows import masks
      >>> coupling = AdditiveCoupling(masks.half(2), lambda kept, **_: kept**2)
      >>> coupling.forward_and_log_det(jnp.array([[3.0, 1.0]])).value
      Array([[ 3., 10.]], dtype=float32)

    Dinh, Krueger and Bengio: NICE: non-linear independent components estimation. 2014.
    """

    def __init__(self, mask: Bool[np.ndarray, "*event"], conditioner: Callable[..., Array]) -> None:
        self.mask = _checked(mask)
        self.event_shape = mask.shape
        self.conditioner = conditioner
        self.numbers = 1

    def transform(self, x: Float[Array, "*batch m"], parameters: Float[Array, "*batch n m"]) -> tuple[Array, Array]:
        return x + parameters[..., 0, :], jnp.zeros_like(x)

    def untransform(self, z: Float[Array, "*batch m"], parameters: Float[Array, "*batch n m"]) -> tuple[Array, Array]:
        return z - parameters[..., 0, :], jnp.zeros_like(z)


class AffineCoupling(Coupling):
    """Scale and shift some dimensions by functions of the others.

    With `a` the dimensions that the mask keeps and `b` the others,
    `z_a = x_a`, `z_b = x_b exp(s) + t`, where `(r, t) = conditioner(x_a)` and `s = bound · tanh(r / bound)`.
    The log-determinant is the sum of `s`. The bound keeps the scale between `exp(-bound)` and `exp(bound)` whatever the
    conditioner answers, so that no number of couplings in use overflows.

    Args:
      mask: true where a dimension is kept, of the shape of an event. A mask that keeps the first or the last dimensions of the last axis
        (`masks.half`, `masks.channels` or its negative) costs least.
      conditioner: any module `conditioner(kept, condition=..., key=...) -> (..., 2 · transformed)`, `r` first, then `t`.
      bound: the largest `|log scale|`.

    Raises:
      ValueError: if the mask keeps all dimensions or none, or the bound is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from deqflow.flows import ResidualMLP, masks
      >>> conditioner = ResidualMLP(1, 4, width=8, depth=1, rngs=nnx.Rngs(0))
      >>> coupling = AffineCoupling(masks.half(3), conditioner)
      >>> coupling.forward_and_log_det(jnp.array([[1.0, 2.0, 3.0]])).log_det   # starts as the identity
      Array([0.], dtype=float32)

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP. ICLR 2017.
    """

    def __init__(
        self, mask: Bool[np.ndarray, "*event"], conditioner: Callable[..., Array], *, bound: Annotated[float, Range(gt=0)] = 2.0
    ) -> None:
        check_ranges(AffineCoupling.__init__, locals())
        self.mask = _checked(mask)
        self.event_shape = mask.shape
        self.conditioner = conditioner
        self.numbers = 2
        self.bound = bound

    def transform(self, x: Float[Array, "*batch m"], parameters: Float[Array, "*batch n m"]) -> tuple[Array, Array]:
        s = self._log_scale(parameters)
        return x * jnp.exp(s) + parameters[..., 1, :], s

    def untransform(self, z: Float[Array, "*batch m"], parameters: Float[Array, "*batch n m"]) -> tuple[Array, Array]:
        s = self._log_scale(parameters)
        return (z - parameters[..., 1, :]) * jnp.exp(-s), -s

    def _log_scale(self, parameters: Array) -> Array:
        return self.bound * jnp.tanh(parameters[..., 0, :] / self.bound)


class SplineCoupling(Coupling):
    """Transform some dimensions by increasing rational-quadratic splines whose knots are functions of the others.

    On `[-bound, bound]` each is a spline of `bins` pieces (see `Spline`), outside it is the identity. Two couplings with many bins model
    what takes many affine ones.

    Args:
      mask: true where a dimension is kept, of the shape of an event.
      conditioner: any module `conditioner(kept, condition=..., key=...) -> (..., (3 bins - 1) · transformed)`; zeros are the identity.
      bins: number of pieces.
      bound: how far they reach; most of the data should lie within, which an `ActNorm` before sees to.

    Raises:
      ValueError: if the mask keeps all dimensions or none, or a number is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from deqflow.flows import ResidualMLP, masks
      >>> conditioner = ResidualMLP(1, 2 * (3 * 8 - 1), width=8, depth=1, rngs=nnx.Rngs(0))
      >>> SplineCoupling(masks.half(3), conditioner, bins=8).forward_and_log_det(jnp.array([[1.0, 2.0, 30.0]])).value
      Array([[ 1.,  2., 30.]], dtype=float32)

    Durkan, Bekasov, Murray and Papamakarios: Neural spline flows. NeurIPS 2019.
    """

    def __init__(
        self,
        mask: Bool[np.ndarray, "*event"],
        conditioner: Callable[..., Array],
        *,
        bins: Annotated[int, Range(ge=2)] = 8,
        bound: Annotated[float, Range(gt=0)] = 4.0,
    ) -> None:
        check_ranges(SplineCoupling.__init__, locals())
        self.mask = _checked(mask)
        self.event_shape = mask.shape
        self.conditioner = conditioner
        self.numbers = 3 * bins - 1
        self.bound = bound

    def transform(self, x: Float[Array, "*batch m"], parameters: Float[Array, "*batch n m"]) -> tuple[Array, Array]:
        return Spline.of(jnp.swapaxes(parameters, -2, -1), self.bound)(x, self.bound)

    def untransform(self, z: Float[Array, "*batch m"], parameters: Float[Array, "*batch n m"]) -> tuple[Array, Array]:
        return Spline.of(jnp.swapaxes(parameters, -2, -1), self.bound).inverse(z, self.bound)


def _checked(mask: Bool[np.ndarray, "*event"]) -> tuple[bool, ...]:
    if mask.all() or not mask.any():
        raise ValueError(f"a coupling keeps some dimensions and transforms others; the mask keeps {mask.sum()} of {mask.size}")
    return tuple(mask.ravel().tolist())


# Slices where they suffice: indexing with a list costs several times as much on a CPU, above all its derivative.


def _part(x: jax.Array, mask: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """What is kept of the last axis, and what is transformed."""
    count = int(mask.sum())
    if mask[:count].all():
        return x[..., :count], x[..., count:]
    if mask[-count:].all():
        return x[..., -count:], x[..., :-count]
    return x[..., mask], x[..., ~mask]


def _join(kept: jax.Array, moved: jax.Array, mask: np.ndarray) -> jax.Array:
    """Undo `_part`."""
    count = int(mask.sum())
    if mask[:count].all():
        return jnp.concatenate([kept, moved], axis=-1)
    if mask[-count:].all():
        return jnp.concatenate([moved, kept], axis=-1)
    order = np.concatenate([np.flatnonzero(mask), np.flatnonzero(~mask)])
    return jnp.concatenate([kept, moved], axis=-1)[..., np.argsort(order)]
