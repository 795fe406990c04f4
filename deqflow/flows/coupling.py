"""Couplings: one part of the dimensions is transformed as the other part says."""

import abc
from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from deqflow.flows.bijector import Bijector, Transformed, check_event
from deqflow.flows.spline import Spline
from deqflow.registry import Range, check_ranges


class Coupling(Bijector):
    """Transform some dimensions, each by itself, as a function of the others says.

    With `a` the dimensions that the mask keeps and `b` the others, `z_a = x_a`, `z_b = h(x_b; conditioner(x_a))` with an increasing h.

    Attributes:
      mask: true where a dimension is kept.
      conditioner: any module `conditioner(kept, condition=..., key=...) -> (batch, numbers · transformed)`.
      numbers: how many parameters h has; the first of every dimension come first, then the second of every dimension, and so on.
    """

    mask: tuple[bool, ...]
    conditioner: Callable[..., Array]
    numbers: int

    @abc.abstractmethod
    def transform(self, x: Float[Array, "batch m"], parameters: Float[Array, "batch n m"]) -> tuple[Array, Array]:
        """The value of h and the logarithm of its slope."""

    @abc.abstractmethod
    def untransform(self, z: Float[Array, "batch m"], parameters: Float[Array, "batch n m"]) -> tuple[Array, Array]:
        """The inverse of h and the logarithm of its slope."""

    def forward_and_log_det(
        self, x: Float[Array, "batch n"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        kept, moved = self._part(x)
        value, log_slopes = self.transform(moved, self._parameters(kept, condition, key))
        return Transformed(self._join(kept, value), log_slopes.sum(1), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch n"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)
        kept, moved = self._part(z)
        value, log_slopes = self.untransform(moved, self._parameters(kept, condition, key))
        return Transformed(self._join(kept, value), log_slopes.sum(1), {})

    def _parameters(self, kept: Array, condition: Array | None, key: Key[Array, ""] | None) -> Float[Array, "batch n m"]:
        parameters = self.conditioner(kept, condition=condition, key=key)
        moved = len(self.mask) - kept.shape[1]
        expected = (kept.shape[0], self.numbers * moved)
        if parameters.shape != expected:
            raise ValueError(f"the conditioner of this coupling must return shape {expected}, got {parameters.shape}")
        return parameters.reshape(-1, self.numbers, moved)

    # Slices where they suffice: indexing with a list costs several times as much on a CPU, above all its derivative.

    def _part(self, x: Array) -> tuple[Array, Array]:
        """The dimensions kept and the dimensions transformed."""
        mask = np.array(self.mask)
        count = int(mask.sum())
        if mask[:count].all():
            return x[:, :count], x[:, count:]
        if mask[-count:].all():
            return x[:, -count:], x[:, :-count]
        return x[:, mask], x[:, ~mask]

    def _join(self, kept: Array, moved: Array) -> Array:
        """Undo `_part`."""
        mask = np.array(self.mask)
        count = int(mask.sum())
        if mask[:count].all():
            return jnp.concatenate([kept, moved], axis=1)
        if mask[-count:].all():
            return jnp.concatenate([moved, kept], axis=1)
        order = np.concatenate([np.flatnonzero(mask), np.flatnonzero(~mask)])
        return jnp.concatenate([kept, moved], axis=1)[:, np.argsort(order)]


class AdditiveCoupling(Coupling):
    """Shift some dimensions by a function of the others: `z_a = x_a`, `z_b = x_b + t(x_a)`. Volume is preserved.

    Args:
      mask: true where a dimension is kept; events have the shape `(len(mask),)`.
      conditioner: t, any module `conditioner(kept, condition=..., key=...) -> (batch, transformed)`.

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

    def __init__(self, mask: Bool[np.ndarray, " n"], conditioner: Callable[..., Array]) -> None:
        self.mask = _checked(mask)
        self.event_shape = (mask.size,)
        self.conditioner = conditioner
        self.numbers = 1

    def transform(self, x: Float[Array, "batch m"], parameters: Float[Array, "batch n m"]) -> tuple[Array, Array]:
        return x + parameters[:, 0], jnp.zeros_like(x)

    def untransform(self, z: Float[Array, "batch m"], parameters: Float[Array, "batch n m"]) -> tuple[Array, Array]:
        return z - parameters[:, 0], jnp.zeros_like(z)


class AffineCoupling(Coupling):
    """Scale and shift some dimensions by functions of the others.

    With `a` the dimensions that the mask keeps and `b` the others,
    `z_a = x_a`, `z_b = x_b exp(s) + t`, where `(r, t) = conditioner(x_a)` and `s = bound · tanh(r / bound)`.
    The log-determinant is the sum of `s`. The bound keeps the scale between `exp(-bound)` and `exp(bound)` whatever the
    conditioner answers, so that no number of couplings in use overflows.

    Args:
      mask: true where a dimension is kept; events have the shape `(len(mask),)`. A mask that keeps the first or the last dimensions
        (`masks.half` or its negative) costs least.
      conditioner: any module `conditioner(kept, condition=..., key=...) -> (batch, 2 · transformed)`, `r` first, then `t`.
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
        self, mask: Bool[np.ndarray, " n"], conditioner: Callable[..., Array], *, bound: Annotated[float, Range(gt=0)] = 2.0
    ) -> None:
        check_ranges(AffineCoupling.__init__, locals())
        self.mask = _checked(mask)
        self.event_shape = (mask.size,)
        self.conditioner = conditioner
        self.numbers = 2
        self.bound = bound

    def transform(self, x: Float[Array, "batch m"], parameters: Float[Array, "batch n m"]) -> tuple[Array, Array]:
        s = self._log_scale(parameters)
        return x * jnp.exp(s) + parameters[:, 1], s

    def untransform(self, z: Float[Array, "batch m"], parameters: Float[Array, "batch n m"]) -> tuple[Array, Array]:
        s = self._log_scale(parameters)
        return (z - parameters[:, 1]) * jnp.exp(-s), -s

    def _log_scale(self, parameters: Array) -> Array:
        return self.bound * jnp.tanh(parameters[:, 0] / self.bound)


class SplineCoupling(Coupling):
    """Transform some dimensions by increasing rational-quadratic splines whose knots are functions of the others.

    On `[-bound, bound]` each is a spline of `bins` pieces (see `Spline`), outside it is the identity. Two couplings with many bins model
    what takes many affine ones.

    Args:
      mask: true where a dimension is kept; events have the shape `(len(mask),)`.
      conditioner: any module `conditioner(kept, condition=..., key=...) -> (batch, (3 bins - 1) · transformed)`; zeros are the identity.
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
        mask: Bool[np.ndarray, " n"],
        conditioner: Callable[..., Array],
        *,
        bins: Annotated[int, Range(ge=2)] = 8,
        bound: Annotated[float, Range(gt=0)] = 4.0,
    ) -> None:
        check_ranges(SplineCoupling.__init__, locals())
        self.mask = _checked(mask)
        self.event_shape = (mask.size,)
        self.conditioner = conditioner
        self.numbers = 3 * bins - 1
        self.bound = bound

    def transform(self, x: Float[Array, "batch m"], parameters: Float[Array, "batch n m"]) -> tuple[Array, Array]:
        return Spline.of(jnp.moveaxis(parameters, 1, 2), self.bound)(x, self.bound)

    def untransform(self, z: Float[Array, "batch m"], parameters: Float[Array, "batch n m"]) -> tuple[Array, Array]:
        return Spline.of(jnp.moveaxis(parameters, 1, 2), self.bound).inverse(z, self.bound)


def _checked(mask: Bool[np.ndarray, " n"]) -> tuple[bool, ...]:
    if mask.all() or not mask.any():
        raise ValueError(f"a coupling keeps some dimensions and transforms others; the mask keeps {mask.sum()} of {mask.size}")
    return tuple(mask.tolist())
