"""Transformer cells: one mechanism, a looped stack of blocks, and two ways to inject the input into it."""

import abc
from collections.abc import Callable
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.deq.cell import Cell
from deqflow.nn import TransformerBlock
from deqflow.nn.attention import Sequences


class Segment(NamedTuple):
    """A segment of a longer sequence, as the input of a transformer cell.

    Attributes:
      x: the input of the segment.
      past: the input of the segment before it.
      memory: the equilibrium of the segment before it, to which the new one attends and which stays as it is.
    """

    x: Float[Array, "batch time width"]
    past: Float[Array, "batch past width"]
    memory: Float[Array, "batch past width"]


class LoopedCell(Cell):
    """A stack of transformer blocks between an injection of the input and a normalisation.

        f(z, x) = norm(block_L(... block_1(inject(x)(z))))

    The normalisation comes last, so that the state keeps its size whatever the blocks do. Attention is causal, and so is the equilibrium:
    as every position depends on those before it alone, that of a `Segment` is the last part of that of the whole sequence. Dropout masks
    are drawn once per solve. A subclass says how the input enters.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        span: int,
        layers: int = 1,
        expansion: int = 4,
        gain: float = 0.5,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.gain = gain
        self.blocks = nnx.List(
            [TransformerBlock(width, heads=heads, span=span, expansion=expansion, dropout=dropout, rngs=rngs) for _ in range(layers)]
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    @abc.abstractmethod
    def inject(self, x: Sequences) -> Callable[[Sequences], Sequences]:
        """The map from the state to the stream that enters the first block."""

    def prepare(self, x: Sequences | Segment, key: Key[Array, ""] | None = None) -> Callable[[Sequences], Sequences]:
        past = self._past(x) if isinstance(x, Segment) else [None] * len(self.blocks)
        x = x.x if isinstance(x, Segment) else x
        keys = [None] * len(self.blocks) if key is None else jax.random.split(key, len(self.blocks))
        masks = [block.masks(x, k) for block, k in zip(self.blocks, keys, strict=True)]
        enter = self.inject(x)

        def f(z: Sequences) -> Sequences:
            stream = enter(z)
            for block, before, mask in zip(self.blocks, past, masks, strict=True):
                stream = block(stream, past=before, masks=mask)
            return self.norm(stream)

        return f

    def initial(self, x: Sequences | Segment) -> Sequences:
        return jnp.zeros_like(x.x if isinstance(x, Segment) else x)

    def _past(self, segment: Segment) -> list[Sequences]:
        """The stream of the past before every block."""
        streams = [self.inject(segment.past)(segment.memory)]
        for block in self.blocks[:-1]:
            streams.append(block(streams[-1]))
        return streams


@final
class TransformerCell(LoopedCell):
    """Transformer cell: causal blocks on a stream to which the input is added.

        f(z, x) = norm(blocks(gain z + x))

    From `z = 0` one application is an ordinary transformer with one normalisation at its end. `gain` decides how strongly the state acts
    on itself beside an input of unit variance.

    Args:
      width: size of the state and of the input `x`.
      heads: number of attention heads; must divide `width`.
      span: number of distances that the attention tells apart.
      layers: number of blocks.
      expansion: size of a block's hidden layer in widths.
      gain: recurrent strength, a constant factor.
      dropout: fraction of the channels that a mask leaves out, the same ones in the whole solve.
      rngs: random streams; `params` is used.

    Example:
      >>> cell = TransformerCell(8, heads=2, span=6, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 6, 8))
      >>> cell(cell.initial(x), x).shape
      (2, 6, 8)

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019.
    """

    def inject(self, x: Sequences) -> Callable[[Sequences], Sequences]:
        return lambda z: self.gain * z + x


@final
class RecurrentDepthCell(LoopedCell):
    """Recurrent-depth cell: causal blocks on a learned mixture of the state and the input.

        f(z, x) = norm(blocks(gain V z + U x))

    `[V U]` is the adapter of a looped transformer, whose output after many loops is here the equilibrium. As in `TransformerCell`, `gain`
    decides how strongly the state acts on itself.

    Args:
      width: size of the state and of the input `x`.
      heads: number of attention heads; must divide `width`.
      span: number of distances that the attention tells apart.
      layers: number of blocks.
      expansion: size of a block's hidden layer in widths.
      gain: recurrent strength, a constant factor.
      dropout: fraction of the channels that a mask leaves out, the same ones in the whole solve.
      rngs: random streams; `params` is used.

    Example:
      >>> cell = RecurrentDepthCell(8, heads=2, span=6, layers=2, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 6, 8))
      >>> cell(cell.initial(x), x).shape
      (2, 6, 8)

    Geiping et al., "Scaling up test-time compute with latent reasoning: a recurrent depth approach", 2025.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        span: int,
        layers: int = 1,
        expansion: int = 4,
        gain: float = 0.5,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(width, heads=heads, span=span, layers=layers, expansion=expansion, gain=gain, dropout=dropout, rngs=rngs)
        self.recurrent = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.input = nnx.Linear(width, width, rngs=rngs)

    def inject(self, x: Sequences) -> Callable[[Sequences], Sequences]:
        u = self.input(x)
        return lambda z: self.gain * self.recurrent(z) + u
