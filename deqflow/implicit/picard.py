"""Plain iteration."""

import dataclasses
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from deqflow.implicit.solver import Iterate, Solver
from deqflow.implicit.trees import Map, Vectors, per_row
from deqflow.registry import Range


class _State(NamedTuple):
    taken: Int[Array, ""]
    z: Vectors
    f: Vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """Plain, optionally damped, fixed-point iteration.

        z_{k+1} = (1 - damping) z_k + damping f(z_k)

    It converges where `f` is a contraction, and keeps one state beside the iterate.

    Args:
      damping: the fraction of the step to `f(z)` that is taken, in (0, 1].
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: step limit.
      check_every: the residual is looked at after every so many steps.
      precision: of the matrix products in `f`.
      bfloat16_until: the relative residual down to which these products are rounded to bfloat16.

    Example:
      >>> import jax.numpy as jnp
      >>> import deqflow
      >>> sol = deqflow.fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=Picard(rtol=1e-5))
      >>> print(f"{sol.value.item():.4f} after {sol.stats.steps.item()} steps")
      0.7391 after 30 steps
    """

    damping: Annotated[float, Range(gt=0, le=1)] = 1.0

    def init(self, z0: Vectors) -> _State:
        # Pretending that f(z0) = z0 makes the first proposal z0 itself.
        return _State(jnp.zeros((), jnp.int32), z0, z0)

    def step(self, f: Map, state: _State) -> _State:
        z = state.f if self.damping == 1.0 else state.z + self.damping * (state.f - state.z)
        return _State(state.taken + 1, z, f(z))

    def value(self, state: _State) -> Iterate:
        return Iterate(state.z, state.f, per_row(state.z, state.taken, jnp.int32))
