"""Flows in NumPyro's models."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.flow import Flow


def to_numpyro(
    flow: Flow,
    *,
    condition: Float[Array, "*batch features"] | None = None,
    name: str | None = None,
    support: Any = None,
    key: Key[Array, ""] | None = None,
) -> Any:
    """A flow as a `numpyro.distributions.Distribution`, for use as a prior, a likelihood or a guide.

    As it is, the flow is a fixed density. With a `name`, inside a model or guide, its parameters become a `numpyro.param` of that name,
    which NumPyro's variational inference trains; `nnx.update(flow, result.params[name])` puts what it found back into the flow. Needs
    `deqflow[flows]`.

    Args:
      flow: the density, of arrays; for a density of integers see `Dequantize`, which has no place here.
      condition: what a conditional flow is conditioned on; its leading axes are the distribution's batch.
      name: under which the parameters are registered, if they are to be trained.
      support: NumPyro's constraint on each number of a sample where the flow is not on the whole real line, such as
        `constraints.unit_interval` after a `Logit`.
      key: for what is random in the log-density (log-determinant estimators). It is the same for every evaluation, so that the log-density
        stays a function.

    Returns:
      The distribution, of batch shape `condition.shape[:-1]` and the flow's event shape.

    Raises:
      ImportError: if NumPyro is not installed.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from deqflow.flows import Affine, StandardNormal
      >>> prior = to_numpyro(Flow(StandardNormal((2,)), Affine((2,), scale=0.5)))
      >>> prior.event_shape, prior.sample(jax.random.key(0), (3, 4)).shape
      ((2,), (3, 4, 2))

    Phan, Pradhan, Jankowiak: Composable effects for flexible and accelerated probabilistic programming in NumPyro. 2019.
    """
    try:
        import numpyro
        from numpyro.distributions import constraints
    except ImportError as error:
        raise ImportError("to_numpyro needs NumPyro: pip install 'deqflow[flows]'") from error
    from deqflow.flows.numpyro_distribution import FlowDistribution

    if name is not None:
        graphdef, params, rest = nnx.split(flow, nnx.Param, ..., graph=False)
        trained: Any = numpyro.param(name, params)  # pyright: ignore[reportArgumentType]  (any pytree will do)
        flow = nnx.merge(graphdef, trained, rest)
    base = constraints.real if support is None else support
    return FlowDistribution(flow, condition, key, constraints.independent(base, len(flow.base.event_shape)))
