"""A stack of equal bijectors, run as a loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Key

from deqflow.flows.bijector import Bijector, DataDependent, Transformed, split_key
from deqflow.implicit.gradient import SOLVED
from deqflow.nn import refresh


class Repeat(Bijector, DataDependent):
    """Equal bijectors one after the other, the first nearest to the data: `z = f_n(... f_2(f_1(x)))`, compiled once for all.

    What `Chain` unrolls, this runs with `lax.scan` over parameters that are stacked along a leading axis, so that neither the program nor
    the time to compile it grows with their number. The log-determinants are summed; diagnostics have a leading axis of blocks.

    Args:
      make: `make(rngs) -> Bijector`, called once for every block. Blocks may differ in their numbers only: to alternate, make a `Chain` of
        the members of one period.
      count: number of blocks.
      remat: whether the reverse pass computes the inside of a block again, so that only the values between blocks, and the solutions
        of equations inside, are kept for it. That costs less than what is kept does when it is stacked (`python benchmarks/stack.py`).
      rngs: handed to `make`.

    Raises:
      ValueError: if `count` is below 1, or the blocks differ in more than their numbers or change the shape of what they take.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from deqflow.flows import ActNorm, Chain, InvertibleLinear
      >>> make = lambda rngs: Chain([ActNorm((4,)), InvertibleLinear((4,), rngs=rngs)])
      >>> stack = Repeat(make, 16, rngs=nnx.Rngs(0))
      >>> stack.forward_and_log_det(jnp.ones((2, 4))).value.shape
      (2, 4)
    """

    def __init__(self, make: Callable[[nnx.Rngs], Bijector], count: int, *, remat: bool = True, rngs: nnx.Rngs) -> None:
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}")
        blocks = [make(rngs) for _ in range(count)]
        graphs, states = zip(*(nnx.split(block) for block in blocks), strict=True)
        if any(graph != graphs[0] for graph in graphs):
            raise ValueError(
                "blocks that are repeated may differ in their numbers only, but those of `make` differ in what is fixed when compiling, "
                "such as the order of a Permutation; use InvertibleLinear instead, or a Chain of all blocks"
            )
        self.event_shape = blocks[0].event_shape
        if blocks[0].latent_shape != self.event_shape:
            raise ValueError(
                f"a block that is repeated must keep the shape of what it takes, but makes {blocks[0].latent_shape} of "
                f"{self.event_shape}; put what changes the shape before or after the Repeat, in a Chain"
            )
        self.count = count
        self.remat = remat
        self.block = nnx.merge(graphs[0], _stacked(states))

    def blocks(self) -> list[Bijector]:
        """Every block by itself, with a copy of its numbers."""
        graph, stacked = nnx.split(self.block)
        return [nnx.merge(graph, _slice(stacked, index)) for index in range(self.count)]

    def initialize(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> None:
        """Initialise every block from what the blocks before it make of `x`."""
        states = []
        for index, block in enumerate(self.blocks()):
            block_key = split_key(key, index)
            if isinstance(block, DataDependent):
                block.initialize(x, condition=condition, key=block_key)
            x = block.forward_and_log_det(x, condition=condition, key=block_key).value
            states.append(nnx.state(block))
        nnx.update(self.block, _stacked(states))

    def refresh(self) -> None:
        """Let the weights inside every block that are normalised by iteration follow, as `deqflow.nn.refresh` does."""
        states = []
        for block in self.blocks():
            refresh(block)
            states.append(nnx.state(block))
        nnx.update(self.block, _stacked(states))

    def forward_and_log_det(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Transformed:
        return self._run("forward_and_log_det", x, condition, key)

    def inverse_and_log_det(self, z: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Transformed:
        return self._run("inverse_and_log_det", z, condition, key)

    def _run(self, direction: str, value: Any, condition: Array | None, key: Key[Array, ""] | None) -> Transformed:
        graph, stacked = nnx.split(self.block)

        def step(value: Any, number_and_state: tuple[Array, Any]) -> tuple[Any, tuple[Array, dict[str, Any]]]:
            number, state = number_and_state
            block_key = None if key is None else jax.random.fold_in(key, number)
            # A copy, as a module may record something about its call.
            block = nnx.merge(graph, state, copy=True)
            value, log_det, diagnostics = getattr(block, direction)(value, condition=condition, key=block_key)
            return value, (log_det, diagnostics)

        backwards = direction == "inverse_and_log_det"
        # What solves have found is as small as the values between blocks, and finding it again would double their cost.
        body = jax.checkpoint(step, policy=jax.checkpoint_policies.save_only_these_names(SOLVED)) if self.remat else step
        value, (log_dets, diagnostics) = lax.scan(body, value, (jnp.arange(self.count), stacked), reverse=backwards)
        return Transformed(value, log_dets.sum(0), diagnostics)


def _stacked(states: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _slice(state: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], state)
