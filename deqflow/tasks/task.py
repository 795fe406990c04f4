"""The interface between a model and the trainer."""

import abc
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

Batch = dict[str, jax.Array]
"""`x` of shape `(batch, *input_shape)`; `y`, integer labels of shape `(batch, *label_shape)`, where there are labels; in evaluation `mask`,
float of shape `(batch,)`: 1 for an example, 0 for the padding that fills the last batch."""

Figures = dict[str, Any]
"""Figures of Matplotlib by file name, without suffix. It is imported where something is drawn: a start should not wait for it."""


class Task(abc.ABC):
    """What a model is trained for. The trainer knows models through these five methods and two properties, and what layers report.

    The trainer hands over a model in training mode (`nnx.Module.train`) to `initialize` and `loss`, and in evaluation mode
    (`nnx.Module.eval`) to `evaluate` and `pictures`. All randomness comes from `key`.
    """

    @property
    @abc.abstractmethod
    def monitor(self) -> str:
        """The entry of `summarize` that decides which checkpoint is best."""

    @property
    @abc.abstractmethod
    def maximize(self) -> bool:
        """Whether more of `monitor` is better."""

    @abc.abstractmethod
    def initialize(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> None:
        """Set what depends on data before the first step (data-dependent initialisation), in place; often nothing."""

    @abc.abstractmethod
    def loss(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The number to minimise and the numbers to log beside it; traced by `jit` and differentiated."""

    @abc.abstractmethod
    def evaluate(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Named values per example, each of shape `(batch, ...)`; traced by `jit`. The trainer drops the padded rows."""

    @abc.abstractmethod
    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """The reported numbers of a whole split, from the values of `evaluate` for all its examples.

        A value that is not finite stays so in the means: nothing that failed is averaged away.
        """

    @abc.abstractmethod
    def pictures(self, model: nnx.Module, rows: dict[str, np.ndarray], batch: dict[str, np.ndarray], key: Key[Array, ""]) -> Figures:
        """What to look at at the end of a run.

        Args:
          model: the trained model.
          rows: the values of `evaluate` for the whole test split, and its `y` where there are labels.
          batch: one batch of test examples; rows whose `mask` is 0 are ignored.
          key: for sampling.
        """
