"""The composition of bijectors."""

import itertools
from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Key

from deqflow.flows.bijector import Bijector, DataDependent, Transformed, split_key


class Chain(Bijector, DataDependent):
    """Bijectors one after the other, the first nearest to the data: `z = f_n(... f_2(f_1(x)))`.

    The log-determinant is the sum of the layers' log-determinants; the diagnostics of layer `i` are found under `str(i)`.

    Args:
      layers: one bijector or more, each taking what the one before it makes.

    Raises:
      ValueError: if there is no layer, or a layer takes events of another shape than the one before it makes.

    Example:
      >>> import jax.numpy as jnp
      >>> from deqflow.flows import Affine, Permutation
      >>> chain = Chain([Affine((2,), scale=2.0), Permutation([1, 0])])
      >>> chain.forward_and_log_det(jnp.array([[1.0, 2.0]])).value
      Array([[4., 2.]], dtype=float32)
    """

    def __init__(self, layers: Sequence[Bijector]) -> None:
        if not layers:
            raise ValueError("a chain needs at least one layer")
        self.event_shape = layers[0].event_shape
        for index, (before, layer) in enumerate(itertools.pairwise(layers)):
            if layer.event_shape != before.latent_shape:
                raise ValueError(
                    f"layer {index + 1} of the chain takes events of shape {layer.event_shape}, layer {index} makes {before.latent_shape}"
                )
        self._latent_shape = layers[-1].latent_shape
        self.layers = nnx.List(layers)

    def initialize(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> None:
        """Initialise every layer from what the layers before it make of `x`."""
        waiting = sum(isinstance(layer, DataDependent) for layer in self.layers)
        for index, layer in enumerate(self.layers):
            layer_key = split_key(key, index)
            if isinstance(layer, DataDependent):
                layer.initialize(x, condition=condition, key=layer_key)
                waiting -= 1
            if not waiting:
                break
            x = layer.forward_and_log_det(x, condition=condition, key=layer_key).value

    def forward_and_log_det(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Transformed:
        total: Any = 0.0  # takes the precision of what is added
        diagnostics: dict[str, Any] = {}
        for index, layer in enumerate(self.layers):
            x, log_det, report = layer.forward_and_log_det(x, condition=condition, key=split_key(key, index))
            total = total + log_det
            diagnostics |= {str(index): report} if report else {}
        return Transformed(x, total, diagnostics)

    def inverse_and_log_det(self, z: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Transformed:
        total: Any = 0.0  # takes the precision of what is added
        diagnostics: dict[str, Any] = {}
        for index, layer in reversed(list(enumerate(self.layers))):
            z, log_det, report = layer.inverse_and_log_det(z, condition=condition, key=split_key(key, index))
            total = total + log_det
            diagnostics |= {str(index): report} if report else {}
        return Transformed(z, total, diagnostics)
