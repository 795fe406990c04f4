"""A convolutional cell with a residual block."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from deqflow.deq.cell import Cell
from deqflow.nn import Conv, GroupNorm, ResidualBlock, WeightNorm
from deqflow.nn.conv import Images
from deqflow.registry import FromRuntime, Range, check_ranges


class ResidualConvCell(Cell):
    """Residual block of two convolutions with group normalisation.

        f(z, x) = relu(norm(gain r(z) + u)),   r(z) = z + V d(relu(norm(W z))),   u = norm(U x)

    with 3 x 3 convolutions U, V and W, and variational dropout d. As in `ConvCell`, `gain` weighs the state beside the injected input.

    Args:
      width: channels of the state and of the input `x`.
      groups: groups of the normalisations; must divide `width`.
      gain: recurrent strength, a constant factor; more of it makes deeper equilibria that are harder to find.
      dropout: rate of the dropout of hidden numbers, with one mask per solve, in training only.
      weight_norm: whether V and W are weight-normalised.
      rngs: random streams; `params` is used.

    Example:
      >>> cell = ResidualConvCell(8, groups=4, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 6, 6, 8))
      >>> cell(cell.initial(x), x).shape
      (2, 6, 6, 8)

    Bai, Koltun and Kolter, "Multiscale deep equilibrium models", 2020, use a block of this kind at every scale.
    """

    def __init__(
        self,
        width: Annotated[int, FromRuntime],
        *,
        groups: Annotated[int, Range(ge=1)] = 8,
        gain: Annotated[float, Range(gt=0)] = 0.25,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        weight_norm: bool = False,
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(ResidualConvCell.__init__, locals())
        self.gain = gain
        self.inject = Conv(width, width, bias=False, rngs=rngs)
        self.inject_norm = GroupNorm(width, groups)
        self.block = ResidualBlock(width, groups=groups, dropout=dropout, parametrise=WeightNorm if weight_norm else None, rngs=rngs)
        self.norm = GroupNorm(width, groups)

    def prepare(self, x: Images, key: Key[Array, ""] | None = None) -> Callable[[Images], Images]:
        u = self.inject_norm(self.inject(x))
        block = self.block.prepare(u.shape, key)
        return lambda z: jax.nn.relu(self.norm(self.gain * block(z) + u))

    def initial(self, x: Images) -> Images:
        return jnp.zeros_like(x)
