"""The networks inside couplings."""

import abc
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.bijector import split_key
from deqflow.nn import Conv


class ResidualNetwork(nnx.Module, abc.ABC):
    """A residual network: `h ← W_0 x`, `h ← h + W_i silu(h)` for each block, then `W silu(h)`, with linear maps W.

    The condition is appended to the input, at every position if there are several.

    Attributes:
      condition_size: features of the condition; 0 for none.
      first: W_0.
      blocks: the maps W_i.
      last: W, zero at the start.
      dropout: what acts on every `silu(h)`.
    """

    condition_size: int
    first: Callable[[Array], Array]
    blocks: nnx.List
    last: Callable[[Array], Array]
    dropout: nnx.Dropout

    def __call__(
        self,
        x: Float[Array, "batch *positions inputs"],
        *,
        condition: Float[Array, "batch features"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch *positions outputs"]:
        """Apply the network.

        Raises:
          ValueError: if the condition is not of the size declared, or dropout is active and there is no key.
        """
        given = 0 if condition is None else condition.shape[1]
        if given != self.condition_size:
            raise ValueError(f"expected a condition with {self.condition_size} features, got {given or 'none'}")
        if self.dropout.rate > 0 and not self.dropout.deterministic and key is None:
            raise ValueError("dropout in training mode is random: pass key=jax.random.key(...), or call .eval() on the model first")
        if condition is not None:
            condition = condition.reshape(-1, *(1,) * (x.ndim - 2), given)
            x = jnp.concatenate([x, jnp.broadcast_to(condition, (*x.shape[:-1], given))], axis=-1)
        h = self.first(x)
        for index, block in enumerate(self.blocks):
            h = h + block(self.dropout(nnx.silu(h), rngs=split_key(key, index)))
        return self.last(self.dropout(nnx.silu(h), rngs=split_key(key, len(self.blocks))))


class ResidualMLP(ResidualNetwork):
    """A residual multilayer perceptron: `h ← W_0 x`, `h ← h + W_i silu(h)` for each block, then `W silu(h)`.

    The last layer starts at zero, so that a coupling starts as the identity.

    Args:
      inputs: features of the input.
      outputs: features of the output.
      width: features of `h`.
      depth: number of residual blocks.
      dropout: probability with which a feature of `silu(h)` is dropped, for each block and the last layer, in training mode only.
      condition_size: features of the condition, which is appended to the input; 0 for none.
      rngs: where the first parameters are drawn from.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> ResidualMLP(3, 2, width=8, depth=1, rngs=nnx.Rngs(0))(jnp.ones((5, 3))).shape
      (5, 2)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int,
        depth: int,
        dropout: float = 0.0,
        condition_size: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        self.condition_size = condition_size
        self.first = nnx.Linear(inputs + condition_size, width, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.last = nnx.Linear(width, outputs, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)
        self.dropout = nnx.Dropout(dropout)


class ResidualCNN(ResidualNetwork):
    """A residual convolutional network, for couplings of images: `ResidualMLP` with 3 x 3 convolutions, 1 x 1 within the blocks.

    Every output sees a window of 5 x 5 pixels. The last layer starts at zero, so that a coupling starts as the identity.

    Args:
      inputs: channels of the input.
      outputs: channels of the output.
      width: channels of `h`.
      depth: number of residual blocks.
      dropout: probability with which a number of `silu(h)` is dropped, for each block and the last layer, in training mode only.
      condition_size: features of the condition, which is appended to the input at every position; 0 for none.
      rngs: where the first parameters are drawn from.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> ResidualCNN(3, 2, width=8, depth=1, rngs=nnx.Rngs(0))(jnp.ones((5, 4, 4, 3))).shape
      (5, 4, 4, 2)

    Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions. NeurIPS 2018, for the sizes of the kernels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int,
        depth: int,
        dropout: float = 0.0,
        condition_size: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        self.condition_size = condition_size
        self.first = Conv(inputs + condition_size, width, rngs=rngs)
        self.blocks = nnx.List([Conv(width, width, size=1, rngs=rngs) for _ in range(depth)])
        last = Conv(width, outputs, rngs=rngs)
        last.kernel = nnx.Param(jnp.zeros((3, 3, width, outputs)))
        self.last = last
        self.dropout = nnx.Dropout(dropout)
