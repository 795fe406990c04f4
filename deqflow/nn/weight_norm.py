"""Weight normalisation."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deqflow.nn.weight import Kernel, Weight


class WeightNorm(Weight):
    """Weight normalisation: length and direction of every output's weights are parameters of their own.

        w = g v / ‖v‖₂   for each output

    The length `g` starts as that of the kernel, so nothing changes until training does. Growing weights slow their own learning down,
    which keeps the strength of a cell's recurrence, and with it the number of solver steps, from running away.

    Args:
      kernel: the first weights, outputs last.

    Example:
      >>> weight = WeightNorm(jnp.array([[3.0, 1.0], [4.0, 0.0]]))
      >>> print(weight.length[...])
      [5. 1.]
      >>> weight.length[...] = jnp.ones(2)
      >>> print(weight())
      [[0.6 1. ]
       [0.8 0. ]]

    Salimans and Kingma, "Weight normalization: a simple reparameterization to accelerate training of deep neural networks", 2016.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.direction = nnx.Param(kernel)
        self.length = nnx.Param(_lengths(kernel))

    def __call__(self) -> Kernel:
        direction = self.direction[...]
        return direction * (self.length[...] / _lengths(direction))


def _lengths(kernel: Kernel) -> Float[Array, " outputs"]:
    return jnp.sqrt(jnp.sum(kernel**2, axis=tuple(range(kernel.ndim - 1))))
