"""Dropout for maps that are iterated."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from deqflow.registry import Range, check_ranges


class VariationalDropout(nnx.Module):
    """Dropout with one mask for a whole solve.

        d(z) = m z / (1 - rate),   m ~ Bernoulli(1 - rate) for every number of the state

    A mask that changed from step to step would leave the iteration without a fixed point, so `prepare` draws one.

    Args:
      rate: probability with which a number is dropped.

    Raises:
      ValueError: if `rate` is out of its range.

    Example:
      >>> drop = VariationalDropout(0.5).prepare((1, 6), jax.random.key(0))
      >>> print(drop(jnp.ones((1, 6))))
      [[0. 0. 2. 2. 0. 2.]]
      >>> print(drop(jnp.ones((1, 6))))
      [[0. 0. 2. 2. 0. 2.]]

    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", 2016.
    """

    def __init__(self, rate: Annotated[float, Range(ge=0, lt=1)]) -> None:
        check_ranges(VariationalDropout.__init__, locals())
        self.rate = rate
        self.deterministic = False  # what `model.eval()` sets

    def prepare(self, shape: tuple[int, ...], key: Key[Array, ""] | None) -> Callable[[Array], Array]:
        """Draw a mask for arrays of this shape, and return the map; without a key, or in evaluation mode, it is the identity."""
        if key is None or self.rate == 0 or self.deterministic:
            return lambda z: z
        kept = jax.random.bernoulli(key, 1 - self.rate, shape)
        return lambda z: jnp.where(kept, z / (1 - self.rate), 0)
