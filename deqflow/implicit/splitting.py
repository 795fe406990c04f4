"""Operator splittings: monotone inclusions written as fixed points that any solver may accelerate."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer, eval_jaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Bool, Float

from deqflow.implicit.gmres import GMRES
from deqflow.implicit.linear import LinearSolver
from deqflow.implicit.status import Status
from deqflow.implicit.trees import Map, Vectors, as_floating, check_like, on_rows, over, rows

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class MonotoneInclusion(Generic[T]):
    """The problem of finding where the sum of two monotone operators holds zero.

        find z with  0 ∈ F(z) + G(z)

    F is single-valued, G may be a set-valued one such as a subdifferential, known by its resolvent. Two maps have a fixed point exactly
    where there is a solution; hand them to `fixed_point` with a solver of your choice. With F m-strongly monotone
    (`(F(y) - F(z))ᵀ(y - z) >= m ‖y - z‖²`) and L-Lipschitz the solution is unique, and plain iteration of

    - `forward_backward(alpha)` converges for every `alpha < 2m/L²`: one product with F per evaluation;
    - `peaceman_rachford(alpha)` converges for every `alpha > 0`, usually in fewer evaluations: one linear solve each.

    A monotone equilibrium network, `z = σ(W z + U x + b)` with `W = (1-m) I - AᵀA + B - Bᵀ`, is the inclusion of
    `F(z) = (I - W) z - (U x + b)` and a G whose resolvent is the activation: of the ReLU for every alpha, of another σ for alpha = 1
    only. It has one solution whatever A, B and x are, also where iterating σ(W z + U x + b) diverges.

    That F and G are monotone is not checked: a solve that does not converge is what tells. Nor is the residual that a solver reports
    that of the inclusion: it is the map's own, which for a small alpha is about alpha times smaller. Gradients flow to all that the
    three functions close over.

    Args:
      operator: `z -> F(z)`, on pytrees of real floating-point arrays.
      resolvent: `(u, alpha) -> (I + alpha G)⁻¹ u`, the proximal operator of `alpha g` where G is the subdifferential of g.
      operator_resolvent: `(u, alpha) -> (I + alpha F)⁻¹ u`, which Peaceman-Rachford needs. Where it is missing, F must be *affine*, and
        `linear` solves `(I + alpha F) z = u` from products with F alone, and differentiates it as a linear solve.
      linear: solves that system. Its tolerance bounds the accuracy of the solution: choose it below the solver's. A system that misses
        it gives NaN, so that the sample counts as diverged rather than as converged to something else.
      batched: whether that system is one per entry of the leading axis of every leaf, or a single one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import deqflow
      >>> W, x = jnp.array([[0.0, 3.0], [-3.0, 0.0]]), jnp.array([[-1.0, 2.0]])  # m = 1, L = √10
      >>> inclusion = MonotoneInclusion(lambda z: z - z @ W.T - x, lambda u, alpha: jax.nn.relu(u))
      >>> u = deqflow.fixed_point(inclusion.peaceman_rachford(0.3), x).check()
      >>> print(jnp.round(inclusion.solution(u, 0.3), 3))  # z = relu(W z + x)
      [[0.5 0.5]]

    Winston and Kolter, "Monotone operator equilibrium networks", 2020; Ryu and Boyd, "A primer on monotone operator methods", 2016.
    """

    operator: Callable[[T], T]
    resolvent: Callable[[T, Any], T]
    operator_resolvent: Callable[[T, Any], T] | None = None
    _: dataclasses.KW_ONLY
    linear: LinearSolver = GMRES()
    batched: bool = True

    def forward_backward(self, alpha: float | Float[Array, ""]) -> Callable[[T], T]:
        """The map `z -> (I + alpha G)⁻¹ (z - alpha F(z))`, whose fixed points are the solutions.

        Plain iteration contracts for `0 < alpha < 2m/L²`, fastest at `alpha = m/L²`, by `√(1 - m²/L²)` per step. An
        accelerated iterate may lie outside of what the resolvent returns, a little below zero for a ReLU; one more application of the
        map brings it back.

        Args:
          alpha: step size, positive; it changes the way, not the solution.

        Raises:
          ValueError: if alpha is not positive and finite, where its value is known.
        """
        _check_step(alpha)

        def step(z: T) -> T:
            z = as_floating(z, "z")
            slope = _like(self.operator(z), z, "the value of operator")
            return self.solution(jax.tree.map(lambda z, s: z - jnp.asarray(alpha, z.dtype) * s, z, slope), alpha)

        return step

    def peaceman_rachford(self, alpha: float | Float[Array, ""]) -> Callable[[T], T]:
        """The map `u -> C_F C_G u` of reflected resolvents, whose fixed points give the solutions `solution(u, alpha)`.

            C_G u = 2 (I + alpha G)⁻¹ u - u,   C_F u = 2 (I + alpha F)⁻¹ u - u

        Plain iteration converges for every alpha where F is strongly monotone and Lipschitz. Where F is only monotone, average the map
        with the identity: `Picard(damping=0.5)` is the Douglas-Rachford iteration, which converges whenever there is a solution.

        Args:
          alpha: step size, positive; u depends on it, the solution does not.

        Raises:
          ValueError: if alpha is not positive and finite, where its value is known.
        """
        _check_step(alpha)

        def step(u: T) -> T:
            u = as_floating(u, "u")
            v = _reflect(self.solution(u, alpha), u)
            z = self._affine_resolvent(v, alpha) if self.operator_resolvent is None else self.operator_resolvent(v, alpha)
            return _reflect(_like(z, v, "the value of operator_resolvent"), v)

        return step

    def solution(self, u: T, alpha: float | Float[Array, ""]) -> T:
        """The solution `z = (I + alpha G)⁻¹ u` that belongs to the fixed point `u` of `peaceman_rachford(alpha)`.

        Args:
          u: the fixed point.
          alpha: the step size of that map.

        Raises:
          ValueError: if alpha is not positive and finite, where its value is known.
        """
        _check_step(alpha)
        u = as_floating(u, "u")
        return _like(self.resolvent(u, alpha), u, "the value of resolvent")

    def _affine_resolvent(self, u: T, alpha: float | Float[Array, ""]) -> T:
        """`(I + alpha F)⁻¹ u` for an affine F, as the one Newton step from `u` that is exact then."""
        flat, split = rows(u, self.batched)
        alpha = jnp.asarray(alpha, flat.dtype)
        apply = on_rows(self.operator, u, self.batched, "the value of operator")
        product = _linear_part(apply, flat)

        def solve(matvec: Map, b: Vectors) -> Vectors:
            x, stats = self.linear.solve_rows(matvec, b)
            solved: Bool[Array, " batch"] = stats.status == Status.CONVERGED
            return jnp.where(over(solved, x), x, jnp.nan)

        step = lax.custom_linear_solve(lambda v: v + alpha * product(v), alpha * apply(flat), solve, transpose_solve=solve)
        return split(flat - step)


def _check_step(alpha: Any) -> None:
    if not isinstance(alpha, Tracer) and not 0 < float(alpha) < float("inf"):
        raise ValueError(
            f"alpha must be a positive and finite step size, got {alpha}; try m/L² for forward-backward and 1/L for Peaceman-Rachford"
        )


def _linear_part(F: Map, z: Vectors) -> Map:
    """`v -> ∂F v` of an affine F.

    Raises:
      ValueError: if that product depends on where it is taken.
    """
    closed = jax.make_jaxpr(lambda z, v: jax.jvp(F, (z,), (v,))[1])(z, z)
    # What is left when all that the product does not need is removed; z is needed unless F is affine.
    jaxpr, (needs_point, _) = dce_jaxpr(closed.jaxpr, [True], instantiate=[False, True])
    if needs_point:
        raise ValueError(
            "without operator_resolvent, operator must be affine, and its derivative depends on z; give operator_resolvent, "
            "or use forward_backward, which does not need it"
        )
    return lambda v: eval_jaxpr(jaxpr, closed.consts, v)[0]


def _like(out: T, like: Any, name: str) -> T:
    check_like(out, like, name)
    return out


def _reflect(z: T, u: T) -> T:
    """`2 z - u`."""
    return jax.tree.map(lambda z, u: 2 * z - u, z, u)
