"""Fitting a flow to a density that can be evaluated, not sampled."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.flow import Flow


def reverse_kl(
    flow: Flow,
    log_density: Callable[[Any], Array],
    key: Key[Array, ""],
    n: int,
    *,
    condition: Array | None = None,
    path_gradient: bool = True,
) -> Float[Array, ""]:
    """Estimate the reverse Kullback-Leibler divergence from a flow to an unnormalised density, the loss of variational inference.

        KL(q ‖ p) - log Z = E_q[log q(x) - log p̃(x)],   p = p̃ / Z

    The smallest value it can take is `-log Z`; its negative is the evidence lower bound. Samples are functions of the parameters, so it
    has an ordinary gradient, of which one term, `E_q[∂ log q(x) / ∂ parameters]` at fixed x, is zero in expectation and noise in a sample.
    The path gradient leaves it out: its variance vanishes as q approaches p. It costs one more evaluation of the bijector.

    Args:
      flow: q.
      log_density: `log p̃`, from `(n, *event_shape)` to `(n,)`, in nats.
      key: randomness.
      n: number of samples.
      condition: `(n, features)`, if the bijector is conditional.
      path_gradient: whether to leave out the term that is zero in expectation; the value is the same up to rounding.

    Returns:
      The mean over the samples, in nats.

    Raises:
      ValueError: if the base's samples are no differentiable functions of its parameters, or `log_density` returns another shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from deqflow.flows import ActNorm, StandardNormal
      >>> flow = Flow(StandardNormal((1,)), ActNorm((1,)))
      >>> loss = reverse_kl(flow, lambda x: -0.5 * (x**2).sum(1), jax.random.key(0), 4)
      >>> print(f"{loss:.4f}")     # -log √2π: the flow is the density
      -0.9189

    Roeder, Wu, Duvenaud: Sticking the landing: simple, lower-variance gradient estimators for variational inference. NeurIPS 2017.
    """
    if not flow.base.reparametrized:
        raise ValueError(f"reverse_kl differentiates through samples, and those of {type(flow.base).__name__} have no derivative")
    if path_gradient:
        sample_key, density_key = jax.random.split(key)
        x = flow.sample(sample_key, n, condition=condition)
        frozen = None if condition is None else jax.lax.stop_gradient(condition)
        log_q = _stopped(flow).log_prob(x, condition=frozen, key=density_key)
    else:
        x, log_q = flow.sample_and_log_prob(key, n, condition=condition)
    log_p = log_density(x)
    if log_p.shape != (n,):
        raise ValueError(f"log_density must return one number per sample, shape ({n},), got {log_p.shape}")
    return (log_q - log_p).mean()


def _stopped(flow: Flow) -> Flow:
    """The flow as a constant."""
    graphdef, state = nnx.split(flow, graph=False)
    return nnx.merge(graphdef, jax.tree.map(jax.lax.stop_gradient, state))
