"""Multilayer perceptrons with a bounded Lipschitz constant."""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Literal, assert_never

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.nn.activations import Activation, Name
from deqflow.nn.almost_orthogonal import AlmostOrthogonal
from deqflow.nn.linear import Linear
from deqflow.nn.lipschitz import lipschitz_bound
from deqflow.nn.mixed_norm import MixedNormLimit, Norm
from deqflow.nn.norm_limit import NormLimit
from deqflow.nn.orthogonal import Orthogonal
from deqflow.nn.weight import Weight
from deqflow.registry import Range, check_ranges

Parametrisation = Literal["norm_limit", "almost_orthogonal", "orthogonal", "mixed_norm"]

_THROUGH_LINF: tuple[tuple[Norm, Norm], ...] = (("l2", "linf"), ("linf", "linf"), ("linf", "l2"))


class LipschitzMLP(nnx.Module):
    """A multilayer perceptron whose Lipschitz constant in x is at most `bound`, whatever its parameters are.

        g(x) = W_depth φ(W_{depth-1} ... φ(W_0 x + C c + b_0) ...) + b_depth,   Π ‖W_i‖ <= bound

    The g of residual and implicit flows. All matrices have the same limit; the condition c enters the first layer without any.

    Args:
      features: of the input and the output.
      width: features between them, before the activation.
      depth: number of hidden layers.
      bound: of the Lipschitz constant.
      activation: φ, see `Activation`.
      parametrise: how the matrices are kept within their limits: `norm_limit`; `almost_orthogonal`, which is cheaper; `orthogonal`, which
        uses the limit in every direction; `mixed_norm`, which measures hidden features by the largest of them. See `NormLimit`,
        `AlmostOrthogonal`, `Orthogonal` and `MixedNormLimit`.
      condition_size: features of the condition; 0 for none.
      rngs: where the first parameters are drawn from.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> g = LipschitzMLP(2, width=16, depth=2, bound=0.9, rngs=nnx.Rngs(0))
      >>> g(jnp.ones((5, 2))).shape, 0.8 < g.lipschitz_bound() <= 0.9
      ((5, 2), True)
    """

    def __init__(
        self,
        features: int,
        *,
        width: Annotated[int, Range(ge=1)],
        depth: Annotated[int, Range(ge=1)],
        bound: Annotated[float, Range(gt=0)] = 0.98,
        activation: Name = "sincos",
        parametrise: Parametrisation = "norm_limit",
        condition_size: Annotated[int, Range(ge=0)] = 0,
        rngs: nnx.Rngs,
    ) -> None:
        check_ranges(LipschitzMLP.__init__, locals())
        self.condition_size = condition_size
        self.activations = nnx.List([Activation(name=activation) for _ in range(depth)])
        widened = width * self.activations[0].widening
        # A margin for the rounding of the products, so that the bound that is certified is not above what was asked for.
        limit = (bound * (1 - 1e-5)) ** (1 / (depth + 1))
        sizes = [(features, width), *[(widened, width)] * (depth - 1), (widened, features)]
        makes = [functools.partial(make, limit=limit) for make in _makes(parametrise, depth)]
        self.layers = nnx.List([Linear(*size, parametrise=make, rngs=rngs) for size, make in zip(sizes, makes, strict=True)])
        for layer in list(self.layers)[:-1]:
            layer.bias = nnx.Param(jax.random.uniform(rngs.params(), (width,), minval=-math.pi, maxval=math.pi))
        self.condition = Linear(condition_size, width, bias=False, rngs=rngs) if condition_size else None

    def prepare(self, condition: Float[Array, "batch size"] | None = None) -> Callable[[Array], Array]:
        """The map for this condition, with its weights computed now, once for all its uses.

        Raises:
          ValueError: if the condition is not of the size declared.
        """
        given = 0 if condition is None else condition.shape[1]
        if given != self.condition_size:
            raise ValueError(f"expected a condition with {self.condition_size} features, got {given or 'none'}")
        shift = 0.0 if self.condition is None or condition is None else self.condition(condition)
        first, *rest = [layer.prepare() for layer in self.layers]

        def g(x: Array) -> Array:
            h = first(x) + shift
            for activation, layer in zip(self.activations, rest, strict=True):
                h = layer(activation(h))
            return h

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
        """A certified bound: the product of the layers' norms."""
        first, *rest = self.layers
        return lipschitz_bound([first, *(part for pair in zip(self.activations, rest, strict=True) for part in pair)])


def _makes(parametrise: Parametrisation, depth: int) -> list[Callable[..., Weight]]:
    """What makes the weight of each layer."""
    match parametrise:
        case "norm_limit":
            return [NormLimit] * (depth + 1)
        case "almost_orthogonal":
            return [AlmostOrthogonal] * (depth + 1)
        case "orthogonal":
            return [Orthogonal] * (depth + 1)
        case "mixed_norm":
            first, hidden, last = (functools.partial(MixedNormLimit, domain=p, codomain=q) for p, q in _THROUGH_LINF)
            return [first, *[hidden] * (depth - 1), last]
        case _:
            assert_never(parametrise)
