"""The network inside a coupling."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.bijector import split_key


class ResidualMLP(nnx.Module):
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

    def __call__(
        self,
        x: Float[Array, "batch inputs"],
        *,
        condition: Float[Array, "batch features"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch outputs"]:
        """Apply the network.

        Raises:
          ValueError: if the condition is not of the size declared, or dropout is active and there is no key.
        """
        given = 0 if condition is None else condition.shape[1]
        if given != self.condition_size:
            raise ValueError(f"expected a condition with {self.condition_size} features, got {given or 'none'}")
        if self.dropout.rate > 0 and not self.dropout.deterministic and key is None:
            raise ValueError("dropout in training mode is random: pass key=jax.random.key(...), or call .eval() on the model first")
        h = self.first(x if condition is None else jnp.concatenate([x, condition], axis=1))
        for index, block in enumerate(self.blocks):
            h = h + block(self.dropout(nnx.silu(h), rngs=split_key(key, index)))
        return self.last(self.dropout(nnx.silu(h), rngs=split_key(key, len(self.blocks))))
