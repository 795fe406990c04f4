"""What density models made of flows share: from raw data to events of a flow, and back."""

import abc
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Real

from deqflow.flows import Affine, Bijector, Dequantize, Flow, InvertibleLinear, Logit, Permutation, lipschitz_bounds, masks
from deqflow.flows.bijector import DataDependent


class FlowModel(nnx.Module, abc.ABC):
    """A density model of raw data.

    Attributes:
      flow: the density of the data, in the shape that its bijector takes: flattened, or as they are.
      input_shape: shape of one example.
    """

    flow: Flow
    input_shape: tuple[int, ...]

    def initialize(self, x: Real[Array, "batch *event"], key: Key[Array, ""], *, condition: Array | None = None) -> None:
        """Set scales and shifts from one batch of data, in place."""
        bijector = self.flow.bijector
        assert isinstance(bijector, DataDependent)
        bijector.initialize(self._events(x), condition=condition, key=key)

    def log_prob(
        self, x: Real[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch"]:
        """The log-likelihood of each example in nats, in the units of the raw data.

        Args:
          x: `(batch, *input_shape)`; integers of `0 .. levels - 1` if the model has levels.
          condition: `(batch, condition_size)`.
          key: for what is random: the noise of integer data, a stochastic log-determinant, dropout in training.

        Raises:
          ValueError: if a shape is wrong or a key is missing.
        """
        return self.flow.log_prob(self._events(x), condition=condition, key=key)

    def log_prob_and_diagnostics(
        self, x: Real[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, " batch"], dict[str, Any]]:
        """The log-likelihood, and what the flow reports of its solves and estimates."""
        return self.flow.log_prob_and_diagnostics(self._events(x), condition=condition, key=key)

    def lipschitz_bounds(self) -> list[float]:
        """The certified Lipschitz bound of every map that must contract, from the data to the latent."""
        return lipschitz_bounds(self.flow.bijector)

    def inverse_error(
        self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch"]:
        """`max |inverse(forward(x)) - x|` of each example of real data."""
        x, bijector = self._events(x), self.flow.bijector
        latent = bijector.forward_and_log_det(x, condition=condition, key=key).value
        return jnp.abs(bijector.inverse_and_log_det(latent, condition=condition, key=key).value - x).reshape(x.shape[0], -1).max(axis=1)

    def sample(
        self, key: Key[Array, ""], n: int, *, temperature: float | Float[Array, ""] = 1.0, condition: Array | None = None
    ) -> Float[Array, "n *event"]:
        """Draw `n` examples `(n, *input_shape)` in the range of the raw data; integer data as whole numbers of floating type."""
        events = self.flow.sample(key, n, temperature=temperature, condition=condition)
        return events.reshape(n, *self.input_shape)

    def _events(self, x: jax.Array) -> jax.Array:
        if x.shape[1:] != self.input_shape:
            expected = ", ".join(["batch", *map(str, self.input_shape)])
            raise ValueError(f"{type(self).__name__} expected data of shape ({expected}), got {x.shape}")
        return x.reshape(x.shape[0], *self.flow.bijector.event_shape)


def from_levels(shape: tuple[int, ...], levels: int | None, margin: float) -> list[Bijector]:
    """What turns integers of `0 .. levels - 1` into real numbers: `logit(margin + (1 - 2 margin) (x + u) / levels)`, u uniform noise."""
    if levels is None:
        return []
    return [Dequantize(shape, levels=levels), Affine(shape, scale=1 / levels), Logit(shape, margin=margin)]


def chess_board(input_shape: tuple[int, ...]) -> list[Bijector]:
    """For images, the permutation that puts the white squares of a chess board first: each half then sees the neighbours of the other."""
    if len(input_shape) == 1:
        return []
    white = masks.checkerboard(input_shape)
    return [Permutation(np.concatenate([np.flatnonzero(white), np.flatnonzero(~white)]))]


Mixing = Literal["permute", "linear"]
"""What stands between pairs of couplings: a fixed random permutation, or a trainable invertible linear map."""


def in_pairs(size: int, couplings: int, make: Callable[[np.ndarray], Bijector], mixing: Mixing, rngs: nnx.Rngs) -> list[Bijector]:
    """Couplings for masks that keep the one half, then the other; before every pair but the first the dimensions are mixed."""
    rng = np.random.default_rng(0)  # the same partitions for every seed of a run
    layers: list[Bijector] = []
    for index in range(couplings):
        if size > 2 and index > 0 and index % 2 == 0:
            layers.append(Permutation(rng.permutation(size)) if mixing == "permute" else InvertibleLinear((size,), rngs=rngs))
        layers.append(make(masks.half(size) if index % 2 == 0 else ~masks.half(size)))
    return layers


def whitening(size: int, whiten: bool, rngs: nnx.Rngs) -> list[Bijector]:
    """The linear map that takes the correlations out of the data, if it is wanted."""
    return [InvertibleLinear((size,), whiten=True, rngs=rngs)] if whiten else []


def event_size(input_shape: tuple[int, ...], least: int, why: str) -> int:
    """The number of dimensions of an example, or an error if there are fewer than `least`."""
    size = math.prod(input_shape)
    if size < least:
        raise ValueError(f"{why}, got examples of shape {input_shape}")
    return size
