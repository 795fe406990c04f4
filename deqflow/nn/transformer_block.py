"""The block of which transformers are stacked, or looped."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.nn.attention import CausalAttention, Sequences

Masks = tuple[Float[Array, "batch 1 width"], Float[Array, "batch 1 width"]]


class TransformerBlock(nnx.Module):
    """Pre-norm transformer block: causal attention, then a perceptron with one hidden layer, each added to the stream.

        h = x + m₁ · attention(norm(x)),   y = h + m₂ · W₂ gelu(W₁ norm(h))

    The dropout masks m₁ and m₂ are the same for all positions of a sequence, and, as the caller draws them, for all iterations of a
    solve.

    Args:
      width: size of the last axis.
      heads: number of attention heads; must divide `width`.
      span: number of distances that the attention tells apart.
      expansion: size of the hidden layer in widths.
      dropout: fraction of the channels that a mask leaves out.
      rngs: random streams; `params` is used.

    Example:
      >>> block = TransformerBlock(8, heads=2, span=4, rngs=nnx.Rngs(0))
      >>> block(jnp.ones((1, 6, 8))).shape
      (1, 6, 8)

    Xiong et al., "On layer normalization in the transformer architecture", 2020; Gal and Ghahramani, "A theoretically grounded
    application of dropout in recurrent neural networks", 2016.
    """

    def __init__(self, width: int, *, heads: int, span: int, expansion: int = 4, dropout: float = 0.0, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = CausalAttention(width, heads=heads, span=span, rngs=rngs)
        self.hidden_norm = nnx.LayerNorm(width, rngs=rngs)
        self.hidden = nnx.Linear(width, expansion * width, rngs=rngs)
        self.output = nnx.Linear(expansion * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def masks(self, x: Sequences, key: Key[Array, ""] | None) -> Masks | None:
        """The two dropout masks for sequences like `x`; `None` where nothing is left out: in evaluation, or without a key."""
        if key is None or self.dropout.deterministic or self.dropout.rate == 0:
            return None
        ones = jnp.ones_like(x[:, :1])
        first, second = jax.random.split(key)
        return self.dropout(ones, rngs=first), self.dropout(ones, rngs=second)

    def __call__(
        self,
        x: Sequences,
        *,
        masks: Masks | None = None,
        past: Float[Array, "batch past width"] | None = None,
        added: Float[Array, "batch keys qkv"] | None = None,
    ) -> Sequences:
        """Transform the stream.

        Args:
          x: the stream.
          masks: from `masks`.
          past: the stream before `x`, to which `x` attends.
          added: what the attention adds to the queries, keys and values of the past and of `x`.
        """
        keys = x if past is None else jnp.concatenate([past, x], axis=1)
        first, second = (1, 1) if masks is None else masks
        h = x + first * self.attention(self.attention_norm(keys), time=x.shape[1], added=added)
        return h + second * self.output(jax.nn.gelu(self.hidden(self.hidden_norm(h))))
