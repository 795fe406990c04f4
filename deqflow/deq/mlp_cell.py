"""A cell of linear maps."""

import functools
from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.deq.cell import Cell
from deqflow.nn import Linear, SpectralNorm, VariationalDropout, WeightNorm
from deqflow.registry import FromRuntime, Range, check_ranges

Features = Float[Array, "batch *grid features"]
State = Float[Array, "batch *grid width"]


class MLPCell(Cell):
    """Multilayer perceptron with one hidden layer, on the features of every point by themselves.

        f(z, x) = tanh(gain W₂ d(relu(W₁ z + b)) + U x + c)

    with variational dropout d. As tanh is bounded, an equilibrium always exists. With spectral normalisation the norms of W₁ and W₂ are
    1 at most, so that `gain < 1` makes the cell a contraction, whose equilibrium is the only one and is found from anywhere.

    Args:
      width: features of the state.
      inputs: features of `x`; `width` where not given.
      hidden: features of the hidden layer; `width` where not given.
      gain: recurrent strength, a constant factor.
      dropout: rate of the dropout of hidden features, with one mask per solve, in training only.
      parametrise: `weight` or `spectral` normalisation of W₁ and W₂, computed once per solve.
      rngs: random streams; `params` is used.

    Example:
      >>> cell = MLPCell(8, inputs=3, parametrise="spectral", rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 3))
      >>> cell(cell.initial(x), x).shape
      (2, 8)

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019.
    """

    def __init__(
        self,
        width: Annotated[int, FromRuntime],
        *,
        inputs: Annotated[int, Range(ge=1)] | None = None,
        hidden: Annotated[int, Range(ge=1)] | None = None,
        gain: Annotated[float, Range(gt=0)] = 0.5,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        parametrise: Literal["weight", "spectral"] | None = None,
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(MLPCell.__init__, locals())
        make = {None: None, "weight": WeightNorm, "spectral": functools.partial(SpectralNorm, rngs=rngs)}[parametrise]
        self.width, self.hidden = width, hidden or width
        self.inject = Linear(inputs or width, width, rngs=rngs)
        self.first = Linear(width, self.hidden, parametrise=make, rngs=rngs)
        self.dropout = VariationalDropout(dropout)
        self.second = Linear(self.hidden, width, gain=gain, bias=False, parametrise=make, rngs=rngs)

    def prepare(self, x: Features, key: Key[Array, ""] | None = None) -> Callable[[State], State]:
        u = self.inject(x)
        first, second = self.first.prepare(), self.second.prepare()
        drop = self.dropout.prepare((*x.shape[:-1], self.hidden), key)
        return lambda z: jnp.tanh(second(drop(jax.nn.relu(first(z)))) + u)

    def initial(self, x: Features) -> State:
        return jnp.zeros((*x.shape[:-1], self.width), x.dtype)
