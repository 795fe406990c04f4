"""The way into and out of a language model."""

from flax import nnx
from jaxtyping import Array, Float, Int

from deqflow.nn.attention import Sequences

Tokens = Int[Array, "batch time"]
Logits = Float[Array, "batch time vocabulary"]


class TokenEmbedding(nnx.Module):
    """Token embedding, whose matrix also reads the tokens' logits off a state.

        encode(t) = norm(E[t]),   decode(h) = E h

    Args:
      vocabulary: number of tokens.
      width: size of an embedding.
      rngs: random streams; `params` is used.

    Example:
      >>> import jax.numpy as jnp
      >>> embedding = TokenEmbedding(5, 8, rngs=nnx.Rngs(0))
      >>> embedding.decode(embedding.encode(jnp.array([[0, 4]]))).shape
      (1, 2, 5)

    Press and Wolf, "Using the output embedding to improve language models", 2017.
    """

    def __init__(self, vocabulary: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.embed.dtype = None  # that of its matrix when it is used, not when it was made
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def encode(self, tokens: Tokens) -> Sequences:
        """Embeddings of unit variance."""
        return self.norm(self.embed(tokens))

    def decode(self, h: Sequences) -> Logits:
        """The logits of the next token."""
        return self.embed.attend(h)


def context_of(input_shape: tuple[int, ...], vocabulary: tuple[str, ...] | None, model: str) -> tuple[int, int]:
    """The length of a context and the number of tokens of the data, or a `ValueError` if they are no text."""
    if vocabulary is None or len(input_shape) != 1:
        raise ValueError(f"{model} takes windows of tokens, from data such as text, got examples of shape {input_shape}")
    return input_shape[0] - 1, len(vocabulary)
