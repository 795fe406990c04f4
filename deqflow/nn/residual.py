"""A residual block of convolutions."""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Key

from deqflow.nn.conv import Conv, Images
from deqflow.nn.dropout import VariationalDropout
from deqflow.nn.norm import GroupNorm
from deqflow.nn.weight import Parametrise


class ResidualBlock(nnx.Module):
    """Two convolutions beside the identity.

        r(z) = z + V d(relu(norm(W z)))

    with 3 x 3 convolutions V and W, and variational dropout d.

    Args:
      width: channels.
      groups: groups of the normalisation; must divide `width`.
      dropout: rate of the dropout of hidden numbers.
      parametrise: how the kernels are parametrised, such as `WeightNorm`.
      rngs: random streams; `params` is used.

    Example:
      >>> import jax.numpy as jnp
      >>> z = jnp.ones((2, 6, 6, 8))
      >>> ResidualBlock(8, groups=4, rngs=nnx.Rngs(0)).prepare(z.shape, None)(z).shape
      (2, 6, 6, 8)

    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016.
    """

    def __init__(self, width: int, *, groups: int, dropout: float = 0.0, parametrise: Parametrise | None = None, rngs: nnx.Rngs) -> None:
        self.first = Conv(width, width, bias=False, parametrise=parametrise, rngs=rngs)
        self.norm = GroupNorm(width, groups)
        self.dropout = VariationalDropout(dropout)
        self.second = Conv(width, width, bias=False, parametrise=parametrise, rngs=rngs)

    def prepare(self, shape: tuple[int, ...], key: Key[Array, ""] | None) -> Callable[[Images], Images]:
        """Compute the weights, draw the dropout mask for images of this shape, and return the map."""
        first, second, drop = self.first.prepare(), self.second.prepare(), self.dropout.prepare(shape, key)
        return lambda z: z + second(drop(jax.nn.relu(self.norm(first(z)))))
