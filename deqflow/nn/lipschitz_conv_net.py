"""Convolutional networks with a bounded Lipschitz constant."""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Literal

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.nn.activations import Activation, Name
from deqflow.nn.almost_orthogonal import AlmostOrthogonal
from deqflow.nn.conv import Conv, Images
from deqflow.nn.linear import Linear
from deqflow.nn.lipschitz import lipschitz_bound
from deqflow.nn.norm_limit import NormLimit
from deqflow.registry import Range, check_ranges

Parametrisation = Literal["norm_limit", "almost_orthogonal"]


class LipschitzConvNet(nnx.Module):
    """Three convolutions whose Lipschitz constant in x is at most `bound`, whatever the parameters and the size of the images.

        g(x) = K₂ φ(K₁ φ(K₀ x + C c + b₀) + b₁) + b₂,   Π ‖K_i‖₂ <= bound

    with kernels of 3 x 3, 1 x 1 and 3 x 3 and zero padding: the g of residual flows on images. All kernels have the same limit; the
    condition c is one vector per image, enters every pixel of the first layer, and has no limit.

    Args:
      channels: of the input and the output.
      width: channels between them, before the activation.
      bound: of the Lipschitz constant.
      activation: φ, see `Activation`.
      parametrise: `norm_limit` for the closer bound, `almost_orthogonal` for the cheaper one; see `NormLimit`, `AlmostOrthogonal`.
      condition_size: features of the condition; 0 for none.
      rngs: where the first parameters are drawn from.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> g = LipschitzConvNet(3, width=8, bound=0.9, rngs=nnx.Rngs(0))
      >>> g(jnp.ones((2, 6, 6, 3))).shape, 0.7 < g.lipschitz_bound() <= 0.9
      ((2, 6, 6, 3), True)

    Behrmann, Grathwohl, Chen, Duvenaud and Jacobsen, "Invertible residual networks", 2019, for the order of the kernels.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: Annotated[int, Range(ge=1)],
        bound: Annotated[float, Range(gt=0)] = 0.98,
        activation: Name = "sincos",
        parametrise: Parametrisation = "norm_limit",
        condition_size: Annotated[int, Range(ge=0)] = 0,
        rngs: nnx.Rngs,
    ) -> None:
        check_ranges(LipschitzConvNet.__init__, locals())
        self.condition_size = condition_size
        self.activations = nnx.List([Activation(name=activation) for _ in range(2)])
        widened = width * self.activations[0].widening
        # A margin for the rounding of the products, so that the bound that is certified is not above what was asked for.
        limit = (bound * (1 - 1e-5)) ** (1 / 3)
        make = functools.partial(NormLimit if parametrise == "norm_limit" else AlmostOrthogonal, limit=limit)
        shapes = [(channels, width, 3), (widened, width, 1), (widened, channels, 3)]
        self.layers = nnx.List([Conv(i, o, size=size, parametrise=make, rngs=rngs) for i, o, size in shapes])
        for layer in list(self.layers)[:-1]:
            layer.bias = nnx.Param(jax.random.uniform(rngs.params(), (width,), minval=-math.pi, maxval=math.pi))
        self.condition = Linear(condition_size, width, bias=False, rngs=rngs) if condition_size else None

    def prepare(self, condition: Float[Array, "batch size"] | None = None) -> Callable[[Images], Images]:
        """The map for this condition, with its kernels computed now, once for all its uses.

        Raises:
          ValueError: if the condition is not of the size declared.
        """
        given = 0 if condition is None else condition.shape[1]
        if given != self.condition_size:
            raise ValueError(f"expected a condition with {self.condition_size} features, got {given or 'none'}")
        shift = 0.0 if self.condition is None or condition is None else self.condition(condition)[:, None, None]
        first, second, third = [layer.prepare() for layer in self.layers]
        inner, outer = self.activations
        return lambda x: third(outer(second(inner(first(x) + shift))))

    def __call__(
        self,
        x: Images,
        *,
        condition: Float[Array, "batch size"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Images:
        del key  # nothing is random
        return self.prepare(condition)(x)

    def lipschitz_bound(self) -> float:
        """A certified bound, for images of every size: the product of those of the layers."""
        return lipschitz_bound([*self.layers, *self.activations])
