"""A convolutional cell."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from deqflow.deq.cell import Cell
from deqflow.nn import Conv, GroupNorm, VariationalDropout, WeightNorm
from deqflow.nn.conv import Images
from deqflow.registry import FromRuntime, Range, check_ranges


class ConvCell(Cell):
    """Convolutional cell with group normalisation.

        f(z, x) = relu(norm(gain V d(z) + u)),   u = norm(U x)

    with 3 x 3 convolutions U and V, and variational dropout d. The injected input `u` is computed once per solve. As it has
    unit variance, `gain` decides how strongly the state acts on itself beside it: a small one makes the cell a contraction at
    initialisation and keeps it near one, so that training moves among equilibria that exist.

    Args:
      width: channels of the state and of the input `x`.
      groups: groups of the normalisations; must divide `width`.
      gain: recurrent strength, a constant factor; more of it makes deeper equilibria that are harder to find.
      dropout: rate of the dropout of the state where V takes it, with one mask per solve, in training only.
      weight_norm: whether V is weight-normalised.
      rngs: random streams; `params` is used.

    Example:
      >>> cell = ConvCell(8, groups=4, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 6, 6, 8))
      >>> cell(cell.initial(x), x).shape
      (2, 6, 6, 8)

    Bai, Koltun and Kolter, "Multiscale deep equilibrium models", 2020, use cells of this kind.
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
        check_ranges(ConvCell.__init__, locals())
        self.inject = Conv(width, width, bias=False, rngs=rngs)
        self.inject_norm = GroupNorm(width, groups)
        self.recurrent = Conv(width, width, gain=gain, bias=False, parametrise=WeightNorm if weight_norm else None, rngs=rngs)
        self.dropout = VariationalDropout(dropout)
        self.norm = GroupNorm(width, groups)

    def prepare(self, x: Images, key: Key[Array, ""] | None = None) -> Callable[[Images], Images]:
        u = self.inject_norm(self.inject(x))
        recurrent, drop = self.recurrent.prepare(), self.dropout.prepare(u.shape, key)
        return lambda z: jax.nn.relu(self.norm(recurrent(drop(z)) + u))

    def initial(self, x: Images) -> Images:
        return jnp.zeros_like(x)
