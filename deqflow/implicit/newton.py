"""Newton's method, matrix-free."""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from deqflow.implicit.gmres import GMRES
from deqflow.implicit.linear import LinearSolver
from deqflow.implicit.solver import Iterate, Solver
from deqflow.implicit.trees import Map, Vectors, accumulator, norm, over, per_row, select
from deqflow.registry import Range

# Eisenstat and Walker's second choice of the forcing term, with their safeguard, and the bounds that Kelley's book gives it.
_FORCING = 0.9
_LARGEST, _FIRST = 0.9, 0.1


class _State(NamedTuple):
    taken: Int[Array, ""]
    z: Vectors  # the point where the method stands
    f: Vectors
    size: Float[Array, " batch"]  # ‖f(z) - z‖ there
    point: Vectors  # where the map is linearised
    direction: Vectors  # the last step tried
    rejected: Bool[Array, " batch"]  # whether it was taken back
    forcing: Float[Array, " batch"]
    evaluations: Int[Array, " batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Newton(Solver):
    """Newton's method with an inexact, matrix-free Krylov solve and a line search.

        (I - ∂f/∂z(z_k)) d = f(z_k) - z_k   up to   ‖·‖₂ <= η_k ‖f(z_k) - z_k‖₂,     z_{k+1} = z_k + λ d

    The forcing term `η_k` tightens as the residual falls, so that early steps are not solved more precisely than they are worth. A
    step that does not reduce the residual is taken back and tried at half its length; the solve is not repeated. The linearisation
    and each product with the Jacobian count as one evaluation.

    Args:
      linear: the linear solver; its tolerances are replaced by the forcing term.
      refresh: the map is linearised at a new point every so many steps: 1 is Newton's method, more the chord variant with a frozen
        Jacobian. As products with it are all that is ever formed, freezing it spares none of them; it converges linearly.
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: step limit.
      check_every: the residual is looked at after every so many steps.
      precision: of the matrix products in `f`.
      bfloat16_until: the relative residual down to which these products are rounded to bfloat16.

    Example:
      >>> import jax.numpy as jnp
      >>> import deqflow
      >>> sol = deqflow.root(lambda y: y**2 - 2, jnp.ones((1, 1)), solver=Newton())
      >>> print(f"{sol.value.item():.4f} after {sol.stats.steps.item()} steps")
      1.4142 after 5 steps

    Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method", 1996; Kelley, "Iterative methods for linear and
    nonlinear equations", 1995.
    """

    differentiable_steps: ClassVar[bool] = False

    # Convergence is quadratic: the last digits cost one step.
    rtol: Annotated[float, Range(ge=0)] = 1e-6
    linear: LinearSolver = GMRES(max_steps=60)
    refresh: Annotated[int, Range(ge=1)] = 1

    def init(self, z0: Vectors) -> _State:
        number = per_row(z0, 0, accumulator(z0.dtype))
        # Pretending that f(z0) = z0 makes the first trial z0 itself.
        none = jnp.zeros_like(z0)
        return _State(jnp.zeros((), jnp.int32), z0, z0, number, z0, none, number > 0, number, number.astype(jnp.int32))

    def step(self, f: Map, state: _State) -> _State:
        residual = state.f - state.z
        # The first step evaluates at z0; a rejected trial is halved. Neither needs a linear solve, and a zero row asks for none.
        right = jnp.where(over(state.rejected, residual), 0, residual)
        point = jnp.where((state.taken - 1) % self.refresh == 0, state.z, state.point)
        _, jacobian = jax.linearize(f, point)
        goal = state.forcing * jnp.where(state.rejected, 0, state.size)
        solution, stats = self.linear.solve_rows(lambda v: v - jacobian(v), right, tolerance=goal)
        # A solve that came to nothing, as with a singular matrix, leaves the step of plain iteration.
        solution = select(norm(solution) > 0, solution, residual)
        direction = select(state.rejected, state.direction / 2, solution)

        trial = state.z + direction
        image = f(trial)
        size = norm(image - trial)
        first = state.taken == 0
        # Any decrease will do: halving ends, as the residual falls along a Newton direction.
        accepted = first | (size < state.size)
        return _State(
            taken=state.taken + 1,
            z=select(accepted, trial, state.z),
            f=select(accepted, image, state.f),
            size=jnp.where(accepted, size, state.size),
            point=point,
            direction=direction,
            rejected=~accepted,
            forcing=jnp.where(accepted, self._forcing(size, state), state.forcing),
            evaluations=state.evaluations + 2 + stats.evaluations,  # the trial, the linearisation and the products
        )

    def value(self, state: _State) -> Iterate:
        return Iterate(state.z, state.f, state.evaluations)

    def _forcing(self, size: Float[Array, " batch"], state: _State) -> Float[Array, " batch"]:
        ratio = size / jnp.where(state.size > 0, state.size, 1)
        safeguard = _FORCING * state.forcing**2
        forcing = jnp.clip(jnp.maximum(_FORCING * ratio**2, jnp.where(safeguard > 0.1, safeguard, 0)), None, _LARGEST)
        return jnp.where(state.taken == 0, _FIRST, forcing)
