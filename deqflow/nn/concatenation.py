"""Dense concatenation of a layer's input and output."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deqflow.nn.activations import Activation
from deqflow.nn.conv import Conv
from deqflow.nn.linear import Linear
from deqflow.nn.lipschitz import lipschitz_bound


class Concatenation(nnx.Module):
    """The features that a layer takes beside those it makes, weighted so that the whole stretches no more than the layer may.

        y = [η₁ x, η₂ φ(W x + b)],   η₁ = cos α,   η₂ = sin α,   Lip(y) <= sqrt(η₁² + η₂² ‖W‖₂²)

    with a trainable angle α, so that `η₁² + η₂² = 1`: if `‖W‖₂ <= 1`, the constant is at most 1. The block of which invertible DenseNets
    are made.

    Args:
      layer: W and b, a `Linear` layer or a `Conv`.
      activation: φ, with a Lipschitz constant of at most 1.

    Example:
      >>> from deqflow.nn import NormLimit
      >>> block = Concatenation(Linear(2, 3, parametrise=NormLimit, rngs=nnx.Rngs(0)), Activation("sine"))
      >>> block(jnp.ones((4, 2))).shape, block.lipschitz_bound() < 1.001
      ((4, 5), True)

    Perugachi-Diaz, Tomczak and Bhulai, "Invertible DenseNets with concatenated LipSwish", 2021.
    """

    def __init__(self, layer: Linear | Conv, activation: Activation) -> None:
        self.layer = layer
        self.activation = activation
        # The angle at which both have the same weight.
        self.angle = nnx.Param(jnp.full((), jnp.pi / 4, jnp.result_type(float)))

    def prepare(self, shift: Array | float = 0.0) -> Callable[[Array], Array]:
        """The map, with its weights computed now, once for all its uses, and `shift` added before the activation."""
        layer = self.layer.prepare()
        # One angle, not one per number: XLA's own sine will do.
        kept, made = jnp.cos(self.angle[...]), jnp.sin(self.angle[...])

        def concatenate(x: Array) -> Array:
            h = self.activation(layer(x) + shift)
            return jnp.concatenate([kept.astype(x.dtype) * x, made.astype(h.dtype) * h], axis=-1)

        return concatenate

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return self.prepare()(x)

    def lipschitz_bound(self) -> float:
        """A certified bound."""
        bound, angle = lipschitz_bound([self.layer, self.activation]), self.angle[...]
        if bound == math.inf:
            return bound  # whatever the angle: nothing times infinity is no number
        margin = 1 + 4 * float(jnp.finfo(angle.dtype).eps)  # the weights in use are rounded
        return margin * math.hypot(math.cos(angle), math.sin(angle) * bound)
