"""The channel through which equilibrium layers report how their solves went."""

import warnings

import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from jax import lax
from jaxtyping import Array, Bool, Float, Real

from deqflow.implicit import Stats
from deqflow.implicit.health import Health


class Diagnostics(nnx.Variable):
    """A float32 scalar of the last solve, kept where `nnx.state(model, Diagnostics)` finds it.

    It exists from construction and never changes shape, so it passes through `nnx.scan`, `nnx.remat`, `nnx.grad` and `nnx.split` /
    `nnx.merge` like batch statistics do. It is neither a parameter nor differentiated.
    """


class Examined(Diagnostics):
    """A diagnostic that costs more than the solve tells by itself, and is there once a layer is told to be examined: see `examine`."""


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


class HealthDiagnostics(nnx.Module):
    """What a layer that is examined reports of its equilibria and of the backward solve there, over the batch of its last solve.

    A number is NaN as long as, or where, there is no sample to tell it.

    Attributes:
      spectral_radius: the largest of `∂f/∂z`; plain iteration converges nearby where it is below 1.
      jacobian_norm: the largest `‖∂f/∂z‖₂`, a lower estimate; the cell contracts nearby where it is below 1.
      backward_residual: mean relative residual of the linear solve in the backward pass; `None` if the gradient has none.
      backward_steps: mean number of its steps; `None` likewise.

    Args:
      like: another diagnostic of the layer, which has the axes of a stack of layers where there is one.
      backward: whether the gradient solves a linear system.
    """

    def __init__(self, like: Diagnostics, *, backward: bool) -> None:
        unknown = jnp.full_like(like[...], jnp.nan)
        self.spectral_radius = Examined(unknown)
        self.jacobian_norm = Examined(unknown)
        self.backward_residual = Examined(unknown) if backward else None
        self.backward_steps = Examined(unknown) if backward else None

    def record(self, health: Health, usable: Bool[Array, " batch"]) -> None:
        """Write the summary of `health` over the usable samples."""
        over = {"spectral_radius": jnp.max, "jacobian_norm": jnp.max, "backward_residual": jnp.mean, "backward_steps": jnp.mean}
        for name, reduce in over.items():
            if (variable := getattr(self, name)) is not None:
                values = getattr(health, name)
                lowest = {"initial": -jnp.inf} if reduce is jnp.max else {}
                value = jnp.where(jnp.any(usable), reduce(values, where=usable, **lowest), jnp.nan)
                write((variable, lax.stop_gradient(value.astype(jnp.float32))))


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
