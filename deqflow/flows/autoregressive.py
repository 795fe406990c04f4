"""Masked autoregressive flows."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key

from deqflow.flows.bijector import Bijector, Transformed, check_event
from deqflow.flows.log_determinant import detached
from deqflow.implicit import Implicit, implicit_diff
from deqflow.registry import Range, check_ranges


class MADE(nnx.Module):
    """A perceptron whose outputs for dimension i depend on the inputs before i alone.

    Every feature of a hidden layer has a degree from 1 to n - 1, and sees what has no higher one; output i sees degrees below i. The
    condition is seen by all. The last layer starts at zero.

    Args:
      size: number of dimensions n.
      numbers: outputs for each of them.
      width: features of the hidden layers.
      depth: number of hidden layers.
      condition_size: features of the condition; 0 for none.
      rngs: where the first parameters are drawn from.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> made = MADE(3, 2, width=8, depth=2, rngs=nnx.Rngs(0))
      >>> made(jnp.ones((5, 3))).shape
      (5, 2, 3)

    Germain, Gregor, Murray and Larochelle: MADE: masked autoencoder for distribution estimation. ICML 2015.
    """

    def __init__(self, size: int, numbers: int, *, width: int, depth: int, condition_size: int = 0, rngs: nnx.Rngs) -> None:
        self.size = size
        self.numbers = numbers
        self.condition_size = condition_size
        self.first = nnx.Linear(size, width, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth - 1)])
        self.last = nnx.Linear(width, numbers * size, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)
        self.condition = nnx.Linear(condition_size, width, use_bias=False, rngs=rngs) if condition_size else None

    def __call__(self, x: Float[Array, "batch n"], *, condition: Array | None = None) -> Float[Array, "batch numbers n"]:
        """The numbers for every dimension.

        Raises:
          ValueError: if the condition is not of the size declared.
        """
        given = 0 if condition is None else condition.shape[1]
        if given != self.condition_size:
            raise ValueError(f"expected a condition with {self.condition_size} features, got {given or 'none'}")
        inputs = np.arange(1, self.size + 1)
        hidden = np.arange(self.first.out_features) % max(1, self.size - 1) + 1
        h = _masked(self.first, x, hidden[None] >= inputs[:, None])
        if self.condition is not None and condition is not None:
            h = h + self.condition(condition)
        for block in self.blocks:
            h = _masked(block, nnx.silu(h), hidden[None] >= hidden[:, None])
        out = _masked(self.last, nnx.silu(h), np.tile(inputs, self.numbers)[None] > hidden[:, None])
        return out.reshape(-1, self.numbers, self.size)


class MaskedAutoregressive(Bijector):
    """Scale and shift every dimension by functions of those before it: `z_i = x_i exp(s_i(x_{<i})) + t_i(x_{<i})`.

    The log-scale is `s = bound · tanh(r / bound)`, with `(r, t)` from a `MADE`, and the log-determinant its sum. Forward it takes one pass.
    Backward it is the equation `x = (z - t(x)) exp(-s(x))`, of which n plain iterations from anywhere are exact, as each settles one more
    dimension; its gradient is implicit, so that memory does not grow with n. `Inverse` of it is an inverse autoregressive flow.

    Args:
      size: number of dimensions n; events have the shape `(n,)`.
      width: features of the hidden layers of the `MADE`.
      depth: number of them.
      bound: the largest `|log scale|`.
      condition_size: features of the condition; 0 for none.
      gradient: of the inverse.
      rngs: where the first parameters are drawn from.

    Raises:
      ValueError: if a number is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> flow = MaskedAutoregressive(3, width=8, depth=1, rngs=nnx.Rngs(0))
      >>> flow.forward_and_log_det(jnp.ones((2, 3))).log_det        # starts as the identity
      Array([0., 0.], dtype=float32)

    Papamakarios, Pavlakou and Murray: Masked autoregressive flow for density estimation. NeurIPS 2017; Kingma et al.: Improved variational
    inference with inverse autoregressive flow. NeurIPS 2016; Song, Meng, Liao and Ermon: Accelerating feedforward computation via parallel
    nonlinear equation solving. ICML 2021, for the inverse.
    """

    def __init__(
        self,
        size: Annotated[int, Range(ge=1)],
        *,
        width: Annotated[int, Range(ge=1)],
        depth: Annotated[int, Range(ge=1)],
        bound: Annotated[float, Range(gt=0)] = 2.0,
        condition_size: Annotated[int, Range(ge=0)] = 0,
        gradient: Implicit = Implicit(),
        rngs: nnx.Rngs,
    ) -> None:
        check_ranges(MaskedAutoregressive.__init__, locals())
        self.event_shape = (size,)
        self.made = MADE(size, 2, width=width, depth=depth, condition_size=condition_size, rngs=rngs)
        self.bound = bound
        self.gradient = gradient

    def forward_and_log_det(
        self, x: Float[Array, "batch n"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        s, t = self._scale_and_shift(x, condition)
        return Transformed(x * jnp.exp(s) + t, s.sum(1), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch n"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)

        def f(x: Array) -> Array:
            s, t = self._scale_and_shift(x, condition)
            return (z - t) * jnp.exp(-s)

        frozen = detached(f, z)
        x = lax.fori_loop(0, z.shape[1], lambda _, x: frozen(x), lax.stop_gradient(z))
        x = implicit_diff(lambda x: f(x) - x, x, gradient=self.gradient)
        s, _ = self._scale_and_shift(x, condition)
        return Transformed(x, -s.sum(1), {})

    def _scale_and_shift(self, x: Array, condition: Array | None) -> tuple[Array, Array]:
        r, t = jnp.moveaxis(self.made(x, condition=condition), 1, 0)
        return self.bound * jnp.tanh(r / self.bound), t


def _masked(layer: nnx.Linear, x: jax.Array, mask: np.ndarray) -> jax.Array:
    """The layer with the weights that are allowed."""
    assert layer.bias is not None
    kernel = jnp.where(mask, layer.kernel[...], 0)
    return jnp.dot(x, kernel) + layer.bias[...]
