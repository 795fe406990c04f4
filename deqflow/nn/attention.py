"""Causal attention with relative positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

Sequences = Float[Array, "batch time width"]


class CausalAttention(nnx.Module):
    """Multi-head attention to the present and the past, with a learned bias for every distance.

        y_i = Σ_{j <= i} softmax_j(q_i · k_j / √d + b[i - j]) v_j     in every head of size d,  (q, k, v) = W x + u

    Positions enter through their distance alone, so a sequence may stand anywhere; distances of `span` and more share the last bias. `u`
    is what the caller adds to the queries, keys and values; nothing by default.

    Args:
      width: size of the last axis.
      heads: number of heads; must divide `width`.
      span: number of distances with a bias of their own.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if `heads` does not divide `width`.

    Example:
      >>> attention = CausalAttention(8, heads=2, span=4, rngs=nnx.Rngs(0))
      >>> attention(jnp.ones((1, 6, 8))).shape, attention(jnp.ones((1, 6, 8)), time=2).shape
      ((1, 6, 8), (1, 2, 8))

    Vaswani et al., "Attention is all you need", 2017; Raffel et al., "Exploring the limits of transfer learning", 2020 (the bias).
    """

    def __init__(self, width: int, *, heads: int, span: int, rngs: nnx.Rngs) -> None:
        if width % heads:
            raise ValueError(f"heads must divide the width, got {heads} heads for width {width}")
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros((heads, span)))

    def __call__(
        self, x: Sequences, *, time: int | None = None, added: Float[Array, "batch time qkv"] | None = None
    ) -> Float[Array, "batch queries width"]:
        """Attend.

        Args:
          x: the sequence, a memory of the past at its front if there is one.
          time: how many positions at the end ask; all of them by default.
          added: `u`, three times as wide as `x`, in the layout of what `qkv` returns.
        """
        time = x.shape[1] if time is None else time
        qkv = self.qkv(x) if added is None else self.qkv(x) + added
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], self.heads, -1), 3, axis=-1)
        q = q[:, x.shape[1] - time :] / math.sqrt(q.shape[-1])
        scores = jnp.einsum("bihd,bjhd->bhij", q, k).astype(jnp.promote_types(x.dtype, jnp.float32)) + self._position(time, x.shape[1])
        y = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores).astype(v.dtype), v)
        return self.out(y.reshape(x.shape[0], time, -1))

    def _position(self, time: int, keys: int) -> Float[Array, "heads time keys"]:
        """The bias of every distance between the last `time` positions and all; minus infinity to the future."""
        distance = np.arange(keys - time, keys)[:, None] - np.arange(keys)
        bias = self.bias[...][:, np.clip(distance, 0, self.bias.shape[1] - 1)]
        return jnp.where(distance >= 0, bias, -jnp.inf)
