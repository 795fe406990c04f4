"""What the layers of a model report of themselves, whatever its task."""

import jax
import jax.numpy as jnp
from flax import nnx

from deqflow.deq import Diagnostics
from deqflow.tasks.density import Certified

_LARGEST = ("max_steps", "spectral_radius", "jacobian_norm")


def solver_numbers(model: nnx.Module, kind: type[Diagnostics] = Diagnostics) -> dict[str, jax.Array]:
    """What the equilibrium layers of `model` reported in their last call, over all of them: see `deqflow.deq.Diagnostics`.

    Args:
      model: after the call.
      kind: of the diagnostics that are asked for.
    """
    reports: dict[str, list[jax.Array]] = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, kind)):
        reports.setdefault(str(path[-1]), []).append(variable[...])
    over = {name: jnp.max if name in _LARGEST else jnp.mean for name in reports}
    return {f"solver_{name}": over[name](jnp.stack(values)) for name, values in sorted(reports.items())}


def certificate(model: nnx.Module) -> dict[str, float]:
    """`lipschitz_bound`, the largest certified one of the maps that must contract, where there are any."""
    bounds = model.lipschitz_bounds() if isinstance(model, Certified) else []
    return {"lipschitz_bound": max(bounds)} if bounds else {}
