"""What a bijector is, and what a transformation returns."""

import abc
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.shapes import Shape, check_batch


class Transformed(NamedTuple):
    """The result of a bijector in either direction.

    Attributes:
      value: the transformed batch, `(batch, *latent_shape)` of `forward`, `(batch, *event_shape)` of `inverse`.
      log_det: `log |det ∂value/∂input|` per sample, in nats.
      diagnostics: what the transformation reports about itself, such as solver statistics or standard errors, by name; empty for
        a transformation in closed form.
    """

    value: Any
    log_det: Float[Array, " batch"]
    diagnostics: dict[str, Any]


class Bijector(nnx.Module):
    """An invertible map between data `x` and latent `z`, with the log-determinant of its Jacobian.

    `forward` goes from data to latent, the direction in which a density is evaluated; `inverse` goes back, the direction in which
    samples are made. Both work on a batch and return one log-determinant per sample.

    A value may be a tuple of arrays, such as the latents of a multiscale flow; its shape is then a tuple of shapes.

    Attributes:
      event_shape: static shape of one sample, without the batch.
    """

    event_shape: Shape
    _latent_shape: Shape | None = None  # set where it is not the event's

    @property
    def latent_shape(self) -> Shape:
        """Static shape of one latent: that of a sample, unless the bijector rearranges it."""
        return self.event_shape if self._latent_shape is None else self._latent_shape

    @abc.abstractmethod
    def forward_and_log_det(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Transformed:
        """Map data to latent.

        Args:
          x: data, `(batch, *event_shape)`.
          condition: what the map is conditioned on, `(batch, features)`; a bijector without parameters ignores it.
          key: randomness for what is stochastic here (dropout, dequantisation, log-determinant estimators).

        Raises:
          ValueError: if `x` has the wrong shape, or the map is stochastic and there is no key.
        """

    @abc.abstractmethod
    def inverse_and_log_det(self, z: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> Transformed:
        """Map latent `(batch, *latent_shape)` to data; the arguments are those of `forward_and_log_det`."""


class DataDependent(abc.ABC):
    """A bijector whose first parameters depend on data."""

    @abc.abstractmethod
    def initialize(self, x: Any, *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> None:
        """Set the parameters in place from one batch of data, `(batch, *event_shape)`."""


def check_event(bijector: Bijector, x: Any) -> None:
    """Raise `ValueError` unless `x` is data, `(batch, *event_shape)`."""
    check_batch(type(bijector).__name__, x, bijector.event_shape)


def check_latent(bijector: Bijector, z: Any) -> None:
    """Raise `ValueError` unless `z` is latent, `(batch, *latent_shape)`."""
    check_batch(type(bijector).__name__, z, bijector.latent_shape)


def split_key(key: Key[Array, ""] | None, index: int) -> Key[Array, ""] | None:
    """The `index`-th key derived from `key`; `None` stays `None`."""
    return None if key is None else jax.random.fold_in(key, index)
