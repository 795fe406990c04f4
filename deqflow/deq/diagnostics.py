"""The channel through which equilibrium layers report how their solves went."""

import warnings

import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from jax import lax
from jaxtyping import Array, Bool, Float, Real

from deqflow.implicit import Stats


class Diagnostics(nnx.Variable):
    """A float32 scalar of the last solve, kept where `nnx.state(model, Diagnostics)` finds it.

    It exists from construction and never changes shape, so it passes through `nnx.scan`, `nnx.remat`, `nnx.grad` and `nnx.split` /
    `nnx.merge` like batch statistics do. It is neither a parameter nor differentiated.
    """


class SolveDiagnostics(nnx.Module):
    """The four numbers an equilibrium layer reports, over the batch of its last solve.

    Attributes:
      steps: mean number of solver steps.
      max_steps: largest number of solver steps.
      residual: mean relative residual; a failed sample counts as 1.
      failures: fraction of samples that failed (diverged, or came with non-finite input).
    """

    def __init__(self) -> None:
        self.steps = Diagnostics(jnp.zeros((), jnp.float32))
        self.max_steps = Diagnostics(jnp.zeros((), jnp.float32))
        self.residual = Diagnostics(jnp.zeros((), jnp.float32))
        self.failures = Diagnostics(jnp.zeros((), jnp.float32))

    def record(self, stats: Stats) -> None:
        """Write the summary of `stats`."""
        values = summary(stats.steps, stats.relative_residual, stats.failed)
        write(*((getattr(self, name), lax.stop_gradient(value)) for name, value in values.items()))


def summary(steps: Real[Array, " batch"], residual: Float[Array, " batch"], failed: Bool[Array, " batch"]) -> dict[str, Float[Array, ""]]:
    """The numbers of `SolveDiagnostics` by name, from those of every sample."""
    usable = jnp.isfinite(residual) & ~failed
    return {
        "steps": jnp.mean(steps, dtype=jnp.float32),
        "max_steps": jnp.max(steps, initial=0).astype(jnp.float32),
        "residual": jnp.mean(jnp.where(usable, residual, 1), dtype=jnp.float32),
        "failures": jnp.mean(failed, dtype=jnp.float32),
    }


def write(*values: tuple[Diagnostics, Float[Array, ""]], required: bool = False) -> None:
    """Set diagnostics of the call under way.

    Where Flax does not let a module change, in a plain JAX transformation that closes over it such as `jax.jit(lambda x: deq(x))`,
    it warns instead. The statistics that `DEQ.solve` returns are there either way.

    Raises:
      ValueError: in such a place, for values that are `required`.
    """
    try:
        for variable, value in values:
            variable[...] = value
    except TraceContextError as error:
        reason = (
            "because the layer is called inside a JAX transformation that its state does not pass through; use nnx.jit, or pass the state "
            "as an argument and merge it inside (nnx.merge(..., copy=True))"
        )
        if required:
            raise ValueError(f"the layer's penalty cannot reach the loss, {reason}") from error
        warnings.warn(f"the layer's diagnostics were not updated, {reason}", stacklevel=4)
