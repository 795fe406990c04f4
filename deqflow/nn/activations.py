"""Activations with a known Lipschitz constant."""

from typing import Literal, assert_never

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deqflow.nn.sine import cos, sin

Name = Literal["sincos", "sine", "lipswish", "clipswish", "elu", "maxmin"]


class Activation(nnx.Module):
    """An element-wise function whose Lipschitz constant is at most 1, for networks whose Lipschitz constant is bounded.

    * `sincos`: `[sin x, cos x]`, twice the features. Each pair moves on the unit circle as fast as x does, so no slope is lost anywhere.
    * `sine`: `sin x`.
    * `lipswish`: `x σ(β x) / 1.1` with a trainable `β > 0` (Chen et al. 2019).
    * `clipswish`: `[x σ(β x), -x σ(-β x)] / 1.1044`, twice the features (Perugachi-Diaz et al. 2021).
    * `elu`: `x` above zero and `eˣ - 1` below.
    * `maxmin`: the larger and the smaller of each pair of neighbours (Anil et al. 2019); an even number of features.

    Args:
      name: one of these.

    Example:
      >>> import jax.numpy as jnp
      >>> print(Activation("sincos")(jnp.zeros((1, 2))))
      [[0. 0. 1. 1.]]

    Chen, Behrmann, Duvenaud and Jacobsen, "Residual flows for invertible generative modeling", 2019; Perugachi-Diaz, Tomczak and Bhulai,
    "Invertible DenseNets with concatenated LipSwish", 2021; Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", 2019.
    """

    lipschitz = 1.0

    def __init__(self, name: Name = "sincos") -> None:
        self.name: Name = name
        # softplus(0.5) = 0.97, about that of swish
        self.beta = nnx.Param(jnp.full((), 0.5, jnp.result_type(float))) if name in ("lipswish", "clipswish") else None

    @property
    def widening(self) -> int:
        """Features that come out over those that go in."""
        return 2 if self.name in ("sincos", "clipswish") else 1

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch outputs"]:
        match self.name:
            case "sincos":
                return jnp.concatenate([sin(x), cos(x)], axis=-1)
            case "sine":
                return sin(x)
            case "lipswish":
                return x * nnx.sigmoid(self._slope(x) * x) / 1.1
            case "clipswish":
                gate = nnx.sigmoid(self._slope(x) * x)
                return jnp.concatenate([x * gate, x * (gate - 1)], axis=-1) / 1.1044
            case "elu":
                return nnx.elu(x)
            case "maxmin":
                if x.shape[-1] % 2:
                    raise ValueError(f"maxmin sorts pairs of features and needs an even number of them, got {x.shape[-1]}")
                a, b = jnp.split(x, 2, axis=-1)
                return jnp.concatenate([jnp.maximum(a, b), jnp.minimum(a, b)], axis=-1)
            case _:
                assert_never(self.name)

    def _slope(self, x: Array) -> Array:
        assert self.beta is not None
        return nnx.softplus(self.beta[...]).astype(x.dtype)
