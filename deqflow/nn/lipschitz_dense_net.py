"""Densely connected networks with a bounded Lipschitz constant."""

import math
from collections.abc import Callable
from typing import Annotated

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.nn.activations import Activation, Name
from deqflow.nn.concatenation import Concatenation
from deqflow.nn.linear import Linear
from deqflow.nn.lipschitz import lipschitz_bound
from deqflow.nn.norm_limit import NormLimit
from deqflow.registry import Range, check_ranges


class LipschitzDenseNet(nnx.Module):
    """A network each of whose layers sees the outputs of all before it, whose Lipschitz constant in x is at most `bound`.

        g(x) = W h_depth(... h_1(x)),   h_i(x) = [cos α_i x, sin α_i φ(W_i x + b_i)],   ‖W_i‖₂ <= 1,   ‖W‖₂ <= bound

    The g of an invertible DenseNet: since every layer hands on its input, no layer takes slope away from those after it. The condition c
    is added to the first layer's `W_1 x` as `C c`, without a limit.

    Args:
      features: of the input and the output.
      growth: features that each layer adds, before the activation.
      depth: number of these layers.
      bound: of the Lipschitz constant.
      activation: φ, see `Activation`.
      condition_size: features of the condition; 0 for none.
      rngs: where the first parameters are drawn from.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> g = LipschitzDenseNet(2, growth=8, depth=2, bound=0.9, rngs=nnx.Rngs(0))
      >>> g(jnp.ones((5, 2))).shape, 0.8 < g.lipschitz_bound() <= 0.9
      ((5, 2), True)

    Perugachi-Diaz, Tomczak and Bhulai, "Invertible DenseNets with concatenated LipSwish", 2021.
    """

    def __init__(
        self,
        features: int,
        *,
        growth: Annotated[int, Range(ge=1)],
        depth: Annotated[int, Range(ge=1)],
        bound: Annotated[float, Range(gt=0)] = 0.98,
        activation: Name = "clipswish",
        condition_size: Annotated[int, Range(ge=0)] = 0,
        rngs: nnx.Rngs,
    ) -> None:
        check_ranges(LipschitzDenseNet.__init__, locals())
        self.condition_size = condition_size
        # A margin for the rounding of the products, so that the bound that is certified is not above what was asked for.
        limit = (1 - 1e-5) ** (1 / (depth + 1))
        self.blocks = nnx.List([])
        size = features
        for _ in range(depth):
            phi = Activation(name=activation)
            layer = Linear(size, growth, parametrise=lambda kernel: NormLimit(kernel, limit=limit), rngs=rngs)
            layer.bias = nnx.Param(jax.random.uniform(rngs.params(), (growth,), minval=-math.pi, maxval=math.pi))
            self.blocks.append(Concatenation(layer, phi))
            size += growth * phi.widening
        self.last = Linear(size, features, parametrise=lambda kernel: NormLimit(kernel, limit=bound * limit), rngs=rngs)
        self.condition = Linear(condition_size, growth, bias=False, rngs=rngs) if condition_size else None

    def prepare(self, condition: Float[Array, "batch size"] | None = None) -> Callable[[Array], Array]:
        """The map for this condition, with its weights computed now, once for all its uses.

        Raises:
          ValueError: if the condition is not of the size declared.
        """
        given = 0 if condition is None else condition.shape[1]
        if given != self.condition_size:
            raise ValueError(f"expected a condition with {self.condition_size} features, got {given or 'none'}")
        shift = 0.0 if self.condition is None or condition is None else self.condition(condition)
        blocks = [block.prepare(0.0 if i else shift) for i, block in enumerate(self.blocks)]
        last = self.last.prepare()

        def g(x: Array) -> Array:
            for block in blocks:
                x = block(x)
            return last(x)

        return g

    def __call__(
        self,
        x: Float[Array, "batch features"],
        *,
        condition: Float[Array, "batch size"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch features"]:
        del key  # nothing is random
        return self.prepare(condition)(x)

    def lipschitz_bound(self) -> float:
        """A certified bound: the product of those of the concatenations and of the last layer."""
        return lipschitz_bound([*self.blocks, self.last])
