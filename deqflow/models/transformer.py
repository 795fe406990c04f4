"""An ordinary transformer language model."""

from typing import Annotated

import jax
from flax import nnx
from jaxtyping import Array, Key

from deqflow.models.token_embedding import Logits, TokenEmbedding, Tokens, context_of
from deqflow.nn import TransformerBlock
from deqflow.registry import FromRuntime, Range, check_ranges


class Transformer(nnx.Module):
    """Transformer language model with blocks of its own in every layer, the explicit counterpart of `DEQTransformer`.

        logits = E norm(block_L(... block_1(norm(E[tokens]))))

    Args:
      width: size of the stream.
      heads: number of attention heads; must divide `width`.
      depth: number of blocks.
      expansion: size of a block's hidden layer in widths.
      dropout: fraction of the channels that a block leaves out in training.
      input_shape: `(context + 1,)`, the shape of a window of text.
      vocabulary: the tokens.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if the data are no text, or an argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> model = Transformer(width=16, input_shape=(9,), vocabulary=tuple("abcd"), rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 8), jnp.int32)).shape
      (2, 8, 4)

    Vaswani et al., "Attention is all you need", 2017; Radford et al., "Language models are unsupervised multitask learners", 2019.
    """

    def __init__(
        self,
        *,
        width: Annotated[int, Range(ge=1)] = 128,
        heads: Annotated[int, Range(ge=1)] = 4,
        depth: Annotated[int, Range(ge=1)] = 2,
        expansion: Annotated[int, Range(ge=1)] = 4,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        input_shape: Annotated[tuple[int, ...], FromRuntime],
        vocabulary: Annotated[tuple[str, ...] | None, FromRuntime],
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(Transformer.__init__, locals())
        context, size = context_of(input_shape, vocabulary, "transformer")
        self.embedding = TokenEmbedding(size, width, rngs=rngs)
        self.blocks = nnx.List(
            [TransformerBlock(width, heads=heads, span=context, expansion=expansion, dropout=dropout, rngs=rngs) for _ in range(depth)]
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: Tokens, *, key: Key[Array, ""] | None = None) -> Logits:
        """Logits of the token after every position."""
        stream = self.embedding.encode(tokens)
        keys = [None] * len(self.blocks) if key is None else jax.random.split(key, len(self.blocks))
        for block, k in zip(self.blocks, keys, strict=True):
            stream = block(stream, masks=block.masks(stream, k))
        return self.embedding.decode(self.norm(stream))
