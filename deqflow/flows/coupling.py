"""Couplings: one part of the dimensions is transformed as the other part says."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from deqflow.flows.bijector import Bijector, Transformed, check_event


class AffineCoupling(Bijector):
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

    def __init__(self, mask: Bool[np.ndarray, " n"], conditioner: Callable[..., Array], *, bound: float = 2.0) -> None:
        if mask.all() or not mask.any():
            raise ValueError(f"a coupling keeps some dimensions and transforms others; the mask keeps {mask.sum()} of {mask.size}")
        if not bound > 0:
            raise ValueError(f"bound must be > 0, got {bound}")
        self.event_shape = (mask.size,)
        self.mask = tuple(mask.tolist())
        self.conditioner = conditioner
        self.bound = bound

    def forward_and_log_det(
        self, x: Float[Array, "batch n"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        kept, moved = self._part(x)
        s, t = self._scale_and_shift(kept, condition, key)
        return Transformed(self._join(kept, moved * jnp.exp(s) + t), s.sum(1), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch n"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)
        kept, moved = self._part(z)
        s, t = self._scale_and_shift(kept, condition, key)
        return Transformed(self._join(kept, (moved - t) * jnp.exp(-s)), -s.sum(1), {})

    def _scale_and_shift(self, kept: Array, condition: Array | None, key: Key[Array, ""] | None) -> tuple[Array, Array]:
        """The bounded log-scale and the shift, from one pass of the conditioner."""
        parameters = self.conditioner(kept, condition=condition, key=key)
        expected = (kept.shape[0], 2 * (len(self.mask) - kept.shape[1]))
        if parameters.shape != expected:
            raise ValueError(f"the conditioner of this coupling must return shape {expected}, got {parameters.shape}")
        r, t = jnp.split(parameters, 2, axis=1)
        return self.bound * jnp.tanh(r / self.bound), t

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
