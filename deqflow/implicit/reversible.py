"""Reversible fixed-point iteration, and the gradient that runs it backwards."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import eval_jaxpr
from jaxtyping import Array, Int

from deqflow.implicit.attach import detach
from deqflow.implicit.gradient import Gradient, solve_frozen
from deqflow.implicit.loop import Request
from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Iterate, Precision, Solver
from deqflow.implicit.trees import Map, Vectors, over, per_row
from deqflow.registry import Range


class _State(NamedTuple):
    taken: Int[Array, ""]
    y: Vectors
    z: Vectors
    image: Vectors  # f(y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reversible(Solver):
    """Two coupled damped iterations, each step of which can be undone.

        y_{k+1} = (1 - damping) y_k + damping f(z_k),     z_{k+1} = (1 - damping) z_k + damping f(y_{k+1})

    Two evaluations per step. It converges where `f` is a contraction: errors of `y` and `z` with opposite signs see `-f`, so damping does
    not help it past eigenvalues below -1, as it helps plain iteration. Undoing a step divides rounding
    errors by `1 - damping`, so that a damping near 1, or many steps, cost `ReversibleAdjoint` its digits.

    Args:
      damping: the fraction of the step to `f` that is taken, in (0, 1).
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: step limit.
      check_every: the residual is looked at after every so many steps.
      precision: of the matrix products in `f`.
      bfloat16_until: the relative residual down to which these products are rounded to bfloat16.

    Example:
      >>> import jax.numpy as jnp
      >>> import deqflow
      >>> sol = deqflow.fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=Reversible(rtol=1e-5))
      >>> print(f"{sol.value.item():.4f} after {sol.stats.steps.item()} steps")
      0.7391 after 47 steps

    McCallum, Arora and Foster, "Reversible deep equilibrium models", 2025.
    """

    damping: Annotated[float, Range(gt=0, lt=1)] = 0.5

    def init(self, z0: Vectors) -> _State:
        return _State(jnp.zeros((), jnp.int32), z0, z0, z0)

    def step(self, f: Map, state: _State) -> _State:
        y = (1 - self.damping) * state.y + self.damping * f(state.z)
        image = f(y)
        z = (1 - self.damping) * state.z + self.damping * image
        return _State(state.taken + 1, y, z, image)

    def value(self, state: _State) -> Iterate:
        return Iterate(state.y, state.image, per_row(state.y, 2 * state.taken, jnp.int32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReversibleAdjoint(Gradient):
    """The derivative of the iteration itself, with memory that does not grow with its steps, for `Reversible` alone.

    The backward pass undoes every step before it differentiates it, so that only the last state is kept. It is the exact derivative of
    the steps taken, up to the rounding errors of undoing them, which grow as `(1 - damping)^{-steps}`. Reverse mode only, and first order.

    Args:
      precision: of the matrix products in the backward pass.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import deqflow
      >>> def solution(a):
      ...     f = lambda z: 0.5 * (z + a / z)
      ...     solver = deqflow.implicit.Reversible(rtol=1e-6)
      ...     return deqflow.fixed_point(f, jnp.ones((1,)), solver=solver, gradient=ReversibleAdjoint()).value[0]
      >>> print(f"{jax.grad(solution)(4.0):.3f}")
      0.250

    McCallum, Arora and Foster, "Reversible deep equilibrium models", 2025.
    """

    solvers: ClassVar[tuple[type[Solver], ...]] = (Reversible,)
    through_steps: ClassVar[bool] = True

    precision: Precision = "highest"

    def solve(self, solver: Solver, f: Map, z0: Vectors, request: Request) -> tuple[Vectors, Stats]:
        assert isinstance(solver, Reversible)
        solved = solve_frozen(solver, f, z0, request, keep=True)
        with jax.default_matmul_precision(self.precision):
            closed = jax.make_jaxpr(f)(z0)
        differentiable = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in closed.consts]
        parameters = [jnp.asarray(leaf) for leaf, real in zip(closed.consts, differentiable, strict=True) if real]
        others = [leaf for leaf, real in zip(closed.consts, differentiable, strict=True) if not real]

        def evaluate(z: Vectors, parameters: list[Array], others: list[Array]) -> Vectors:
            reals, rest = iter(parameters), iter(others)
            (out,) = eval_jaxpr(closed.jaxpr, [next(reals if real else rest) for real in differentiable], z)
            return out

        @jax.custom_vjp
        def reached(z0: Vectors, parameters: list[Array], others: list[Array], end: _End) -> Vectors:
            return end.y

        def backward(kept: Any, cotangent: Vectors) -> Any:
            parameters, others, end = kept
            pulled = _undo(solver.damping, lambda z, parameters: evaluate(z, parameters, others), parameters, end, cotangent)
            return *pulled, None, None

        reached.defvjp(lambda z0, parameters, others, end: (end.y, (parameters, others, end)), backward)
        steps = jnp.where(solved.stats.failed, 0, solved.best_step)

        def attached(y: Vectors) -> Vectors:
            return reached(z0, parameters, others, _End(y, jnp.where(jnp.isfinite(solved.state.z), solved.state.z, 0), steps))

        return detach(solved.stats.failed, solved.value, attached), solved.stats


class _End(NamedTuple):
    y: Vectors
    z: Vectors
    steps: Int[Array, " batch"]


class _Reverse(NamedTuple):
    number: Int[Array, ""]  # of the step to undo
    y: Vectors
    z: Vectors
    y_bar: Vectors
    z_bar: Vectors
    parameters_bar: list[Array]


def _undo(
    damping: float, f: Callable[[Vectors, list[Array]], Vectors], parameters: list[Array], end: _End, cotangent: Vectors
) -> tuple[Vectors, list[Array]]:
    """The cotangents of the initial guess and of the parameters, by undoing every row's steps from its last."""

    def half(number: Array, at: Vectors, other: Vectors, at_bar: Vectors, other_bar: Vectors, parameters_bar: list[Array]) -> Any:
        """Undo `other = (1 - damping) before + damping f(at)`: `before`, and the three cotangents."""
        active = over(number <= end.steps, at)
        image, pull = jax.vjp(f, at, parameters)
        added, more = pull(jnp.where(active, damping * other_bar, 0))
        before = jnp.where(active, (other - damping * image) / (1 - damping), other)
        other_bar = jnp.where(active, (1 - damping) * other_bar, other_bar)
        return before, at_bar + added, other_bar, jax.tree.map(jnp.add, parameters_bar, more)

    def undo(r: _Reverse) -> _Reverse:
        z, y_bar, z_bar, parameters_bar = half(r.number, r.y, r.z, r.y_bar, r.z_bar, r.parameters_bar)
        y, z_bar, y_bar, parameters_bar = half(r.number, z, r.y, z_bar, y_bar, parameters_bar)
        return _Reverse(r.number - 1, y, z, y_bar, z_bar, parameters_bar)

    start = _Reverse(
        jnp.max(end.steps, initial=0), end.y, end.z, cotangent, jnp.zeros_like(cotangent), jax.tree.map(jnp.zeros_like, parameters)
    )
    r = lax.while_loop(lambda r: r.number > 0, undo, start)
    return r.y_bar + r.z_bar, r.parameters_bar
