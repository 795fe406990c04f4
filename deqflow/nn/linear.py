"""Linear maps of features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from deqflow.nn.weight import Parametrise, make_weight, value_of


class Linear(nnx.Module):
    """Linear map of the last axis: `x (gain * kernel) + bias`.

    Args:
      inputs: features of the input.
      outputs: features of the output.
      gain: constant factor of the kernel, which itself starts with standard deviation `1 / sqrt(inputs)`.
      bias: whether to add one number per feature.
      parametrise: how the kernel is parametrised, such as `WeightNorm`; `None` for as it is.
      rngs: random streams; `params` is used.

    Example:
      >>> Linear(3, 5, rngs=nnx.Rngs(0))(jnp.ones((2, 3))).shape
      (2, 5)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        gain: float = 1.0,
        bias: bool = True,
        parametrise: Parametrise | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        kernel = jax.random.normal(rngs.params(), (inputs, outputs)) / np.sqrt(inputs)
        self.gain = gain
        self.kernel = make_weight(kernel, parametrise)
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None

    def prepare(self) -> Callable[[Array], Array]:
        """The map, with its weights computed now, once for all its uses."""
        kernel = self.gain * value_of(self.kernel)
        bias = None if self.bias is None else self.bias[...]
        return lambda x: jnp.dot(x, kernel) if bias is None else jnp.dot(x, kernel) + bias

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return self.prepare()(x)
