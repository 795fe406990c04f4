"""What an equilibrium layer iterates."""

import abc
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Key

State = Any
"""A pytree of floating-point arrays with a leading batch axis."""


class Cell(nnx.Module, abc.ABC):
    """The map `z -> f(z, x)` whose fixed point in `z` is the layer's output.

    A subclass says what happens once per solve (`prepare`) and where the solve starts (`initial`). Both must treat every sample of the
    batch by itself, so that samples stay independent: normalise over channels or groups, not over the batch.

    Example:
      >>> import jax.numpy as jnp
      >>> class Tanh(Cell):
      ...     def __init__(self, width, *, rngs):
      ...         self.recurrent = nnx.Linear(width, width, rngs=rngs)
      ...         self.inject = nnx.Linear(width, width, rngs=rngs)
      ...     def prepare(self, x, key=None):
      ...         u = self.inject(x)  # once per solve
      ...         return lambda z: jnp.tanh(0.5 * self.recurrent(z) + u)
      ...     def initial(self, x):
      ...         return jnp.zeros_like(x)
      >>> Tanh(4, rngs=nnx.Rngs(0))(jnp.zeros((2, 4)), jnp.ones((2, 4))).shape
      (2, 4)
    """

    @abc.abstractmethod
    def prepare(self, x: Any, key: Key[Array, ""] | None = None) -> Callable[[State], State]:
        """Do what happens once per solve, such as injecting `x` or drawing a dropout mask, and return the map `z -> f(z, x)`."""

    @abc.abstractmethod
    def initial(self, x: Any) -> State:
        """The initial guess `z0`, usually zeros of the right shape."""

    def __call__(self, z: State, x: Any, *, key: Key[Array, ""] | None = None) -> State:
        """One application `f(z, x)`."""
        return self.prepare(x, key)(z)
