"""A transformer language model whose depth is an equilibrium."""

from typing import Annotated, Literal

from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.deq import DEQ, AttentionInjectionCell, RecurrentDepthCell, Training, TransformerCell
from deqflow.implicit import Anderson, Gradient, Implicit, Solution, Solver
from deqflow.models.token_embedding import Logits, TokenEmbedding, Tokens, context_of
from deqflow.nn.attention import Sequences
from deqflow.registry import FromRuntime, Range, check_ranges


class DEQTransformer(nnx.Module):
    """Deep equilibrium language model: one transformer cell, solved to equilibrium over all positions of a window at once.

        logits = E z,   z = norm(blocks(inject(z, x))),   x = norm(E[tokens])

    Args:
      width: size of the state.
      heads: number of attention heads; must divide `width`.
      layers: number of blocks in the cell.
      expansion: size of a block's hidden layer in widths.
      injection: `add` for `gain z + x`, with the parameters of a `Transformer` as deep as the cell; `concat` for `gain V z + U x`; `qkv`
        for the input in the queries, keys and values of every block.
      gain: recurrent strength of the cell; more of it makes deeper equilibria that are harder to find.
      dropout: fraction of the channels that a block leaves out in training, the same ones in the whole solve.
      solver: how the equilibrium is found.
      gradient: how it is differentiated.
      eval_solver: how it is found in evaluation; the same if `None`.
      training: what is different in training, such as step budgets and penalties.
      input_shape: `(context + 1,)`, the shape of a window of text.
      vocabulary: the tokens.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if the data are no text, or an argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> model = DEQTransformer(width=16, input_shape=(9,), vocabulary=tuple("abcd"), rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 8), jnp.int32)).shape
      (2, 8, 4)

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019; Geiping et al., "Scaling up test-time compute with latent reasoning: a
    recurrent depth approach", 2025 (`concat`).
    """

    def __init__(
        self,
        *,
        width: Annotated[int, Range(ge=1)] = 128,
        heads: Annotated[int, Range(ge=1)] = 4,
        layers: Annotated[int, Range(ge=1)] = 1,
        expansion: Annotated[int, Range(ge=1)] = 4,
        injection: Literal["add", "concat", "qkv"] = "add",
        gain: Annotated[float, Range(gt=0)] = 0.5,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        solver: Solver = Anderson(),
        gradient: Gradient = Implicit(),
        eval_solver: Solver | None = None,
        training: Training = Training(),
        input_shape: Annotated[tuple[int, ...], FromRuntime],
        vocabulary: Annotated[tuple[str, ...] | None, FromRuntime],
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(DEQTransformer.__init__, locals())
        context, size = context_of(input_shape, vocabulary, "deq_transformer")
        self.embedding = TokenEmbedding(size, width, rngs=rngs)
        kind = {"add": TransformerCell, "concat": RecurrentDepthCell, "qkv": AttentionInjectionCell}[injection]
        cell = kind(width, heads=heads, span=context, layers=layers, expansion=expansion, gain=gain, dropout=dropout, rngs=rngs)
        self.deq = DEQ(cell, solver, gradient, eval_solver=eval_solver, training=training)

    def __call__(self, tokens: Tokens, *, key: Key[Array, ""] | None = None) -> Logits:
        """Logits of the token after every position."""
        return self.readout(self.solve(tokens, key=key).value)

    def solve(
        self,
        tokens: Tokens,
        *,
        key: Key[Array, ""] | None = None,
        z0: Sequences | None = None,
        trace: bool = False,
    ) -> Solution[Float[Array, "batch time width"]]:
        """The equilibrium of a window, with statistics; `model(tokens) == model.readout(model.solve(tokens).value)`.

        Args:
          tokens: integers below the size of the vocabulary.
          key: randomness for dropout in training.
          z0: initial guess, for a warm start.
          trace: whether `stats.trace` shall hold the relative residual after every step.
        """
        return self.deq.solve(self.embedding.encode(tokens), key=key, z0=z0, trace=trace)

    def readout(self, z: Sequences) -> Logits:
        """Logits of an equilibrium, or of some of its positions."""
        return self.embedding.decode(z)
