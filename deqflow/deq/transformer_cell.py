"""Transformer cells: one mechanism, a looped stack of blocks, and three ways to inject the input into it."""

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.deq.cell import Cell
from deqflow.nn import TransformerBlock
from deqflow.nn.attention import Sequences

Added = Sequence[Float[Array, "batch time qkv"] | None]
"""What the attention of every block adds to its queries, keys and values."""


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


class Injection(NamedTuple):
    """How an input enters a looped cell.

    Attributes:
      enter: the map from the state to the stream that enters the first block.
      added: what every block's attention adds to its queries, keys and values; nothing if `None`.
    """

    enter: Callable[[Sequences], Sequences]
    added: Added | None = None

    def of(self, layers: int) -> Added:
        """What is added in each of the blocks."""
        return [None] * layers if self.added is None else self.added


class LoopedCell(Cell):
    """A stack of transformer blocks between an injection of the input and a normalisation.

        f(z, x) = norm(block_L(... block_1(enter(z), u_1) ..., u_L)),   (enter, u) = inject(x)

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
    def inject(self, x: Sequences) -> Injection:
        """How the input enters; done once per solve."""

    def prepare(self, x: Sequences | Segment, key: Key[Array, ""] | None = None) -> Callable[[Sequences], Sequences]:
        layers = len(self.blocks)
        past, old = self._past(x) if isinstance(x, Segment) else ([None] * layers, [None] * layers)
        x = x.x if isinstance(x, Segment) else x
        keys = [None] * layers if key is None else jax.random.split(key, layers)
        masks = [block.masks(x, k) for block, k in zip(self.blocks, keys, strict=True)]
        injection = self.inject(x)
        added = [u if o is None or u is None else jnp.concatenate([o, u], axis=1) for o, u in zip(old, injection.of(layers), strict=True)]

        def f(z: Sequences) -> Sequences:
            stream = injection.enter(z)
            for block, before, mask, u in zip(self.blocks, past, masks, added, strict=True):
                stream = block(stream, past=before, masks=mask, added=u)
            return self.norm(stream)

        return f

    def initial(self, x: Sequences | Segment) -> Sequences:
        return jnp.zeros_like(x.x if isinstance(x, Segment) else x)

    def _past(self, segment: Segment) -> tuple[list[Sequences], Added]:
        """The stream of the past before every block, and what is added to its queries, keys and values."""
        injection = self.inject(segment.past)
        added = injection.of(len(self.blocks))
        streams = [injection.enter(segment.memory)]
        for block, u in zip(self.blocks[:-1], added[:-1], strict=True):
            streams.append(block(streams[-1], added=u))
        return streams, added


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

    def inject(self, x: Sequences) -> Injection:
        return Injection(lambda z: self.gain * z + x)


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

    def inject(self, x: Sequences) -> Injection:
        u = self.input(x)
        return Injection(lambda z: self.gain * self.recurrent(z) + u)


@final
class AttentionInjectionCell(LoopedCell):
    """Cell in the way of the first DEQ transformer: the input enters the queries, keys and values of every block.

        f(z, x) = norm(blocks(gain z + x)),   (q, k, v) = W norm(stream) + U x   with W and U of every block's own

    The input is in the stream too: a block normalises what it reads, so that of a stream `gain z` alone it would see the same whatever
    the gain, and the map would be no contraction at any.

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
      >>> cell = AttentionInjectionCell(8, heads=2, span=6, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 6, 8))
      >>> cell(cell.initial(x), x).shape
      (2, 6, 8)

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019.
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
        self.input = nnx.Linear(width, 3 * width * layers, use_bias=False, rngs=rngs)

    def inject(self, x: Sequences) -> Injection:
        return Injection(lambda z: self.gain * z + x, jnp.split(self.input(x), len(self.blocks), axis=-1))
