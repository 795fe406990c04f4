"""A fixed reordering of dimensions."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from deqflow.flows.bijector import Bijector, Transformed, check_event


class Permutation(Bijector):
    """A fixed reordering of the last axis: `z[i] = x[order[i]]`, with log-determinant zero.

    Args:
      order: a permutation of `0 .. n - 1`; events have the shape `(n,)`.

    Raises:
      ValueError: if `order` is not a permutation.

    Example:
      >>> import jax.numpy as jnp
      >>> Permutation([2, 0, 1]).forward_and_log_det(jnp.array([[10.0, 11.0, 12.0]])).value
      Array([[12., 10., 11.]], dtype=float32)
    """

    def __init__(self, order: Sequence[int] | np.ndarray) -> None:
        self.order = tuple(int(i) for i in order)
        self.event_shape = (len(self.order),)
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"order must hold each of 0 .. {len(self.order) - 1} once, got {self.order}")

    def forward_and_log_det(
        self, x: Float[Array, "batch n"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        return Transformed(_columns(x, np.array(self.order)), jnp.zeros(x.shape[0], x.dtype), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch n"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)
        return Transformed(_columns(z, np.argsort(self.order)), jnp.zeros(z.shape[0], z.dtype), {})


def _columns(x: Float[Array, "batch n"], order: np.ndarray) -> Float[Array, "batch n"]:
    """`x[:, order]`, as rows of the transpose: the derivative of that scatters whole rows, not single numbers."""
    return x.T.at[order].get(mode="promise_in_bounds", unique_indices=True).T
