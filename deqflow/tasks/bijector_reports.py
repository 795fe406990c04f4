"""What the bijectors of a density model report of a batch, in one row per example."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real


def report_rows(diagnostics: Mapping[str, Any]) -> dict[str, Float[Array, " batch"]]:
    """Rows from the diagnostics of a bijector, over all its blocks.

    Returns:
      `log_det_variance`, where log-determinants are estimated with two probes or more; `residual`, the largest relative one, `steps`, their
      mean, and `status`, the worst, where equations are solved.
    """
    rows: dict[str, Array] = {}
    solves = list(_found(diagnostics, "solve"))
    errors = list(_found(diagnostics, "standard_error"))
    if solves:
        both = [[_blocks(leaf) for leaf in (stats.relative_residual, stats.steps, stats.status)] for stats in solves]
        residual, steps, status = (jnp.concatenate(leaves) for leaves in zip(*both, strict=True))
        rows |= {"residual": residual.max(0), "steps": steps.mean(0), "status": status.max(0)}
    if errors:
        rows["log_det_variance"] = jnp.concatenate([_blocks(error**2) for error in errors]).sum(0)
    return jax.tree.map(jax.lax.stop_gradient, rows)


def _found(diagnostics: Mapping[str, Any], name: str) -> Iterator[Any]:
    for key, value in diagnostics.items():
        if key == name:
            yield value
        elif isinstance(value, Mapping):
            yield from _found(value, name)


def _blocks(leaf: Array) -> Real[Array, "blocks batch"]:
    """With one leading axis, whether it is of one block or of a stack, or of a stack of stacks."""
    return leaf.reshape(-1, leaf.shape[-1])
