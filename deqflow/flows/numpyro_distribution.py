"""A flow under NumPyro's interface; `to_numpyro` imports this file, and with it NumPyro, when it is asked for."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from numpyro.distributions import Distribution, constraints

from deqflow.flows.flow import Flow


class FlowDistribution(Distribution):
    """What `to_numpyro` returns.

    Args:
      flow: the density.
      condition: `(*batch_shape, features)`, or `None`.
      key: randomness of `log_prob`, or `None`.
      support: NumPyro's constraint on one sample.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("flow", "condition", "key")
    pytree_aux_fields = ("_support",)

    def __init__(self, flow: Flow, condition: Array | None, key: Key[Array, ""] | None, support: Any) -> None:
        self.flow = flow
        self.condition = condition
        self.key = key
        self._support = support
        super().__init__(() if condition is None else condition.shape[:-1], flow.base.event_shape)

    @constraints.dependent_property
    def support(self) -> Any:
        return self._support

    @property
    def has_rsample(self) -> bool:
        return self.flow.base.reparametrized

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draw `(*sample_shape, *batch_shape, *event_shape)`."""
        shape = (*sample_shape, *self.batch_shape)
        flat = self.flow.sample(key, math.prod(shape), condition=self._rows(shape))
        return flat.reshape(*shape, *self.event_shape)

    def log_prob(self, value: Any, intermediates: Any = None) -> jax.Array:
        """The log-density of `(..., *event_shape)` in nats, with the axes of `value` and of the batch broadcast."""
        value = jnp.asarray(value)
        leading = value.ndim - len(self.event_shape)
        shape = jnp.broadcast_shapes(value.shape[:leading], self.batch_shape)
        flat = jnp.broadcast_to(value, (*shape, *self.event_shape)).reshape(-1, *self.event_shape)
        return self.flow.log_prob(flat, condition=self._rows(shape), key=self.key).reshape(shape)

    def _rows(self, shape: tuple[Any, ...]) -> Array | None:
        """One row of the condition for each sample."""
        if self.condition is None:
            return None
        features = self.condition.shape[-1]
        return jnp.broadcast_to(self.condition, (*shape, features)).reshape(-1, features)
