"""Adapters to the fixed-point solvers of jaxopt."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from deqflow.implicit.solver import Iterate, Solver
from deqflow.implicit.trees import Map, Vectors, matrix, per_row
from deqflow.registry import Range

Row = Float[Array, " n"]
Evaluate = Callable[[Row], tuple[Row, Any]]
"""A function of one row in the form jaxopt calls `has_aux`: its value, and beside it the pair `(z, f(z))` for our own use."""

Build = Callable[[Evaluate], Any]
"""The jaxopt solver, for one sample, of the function given to it."""


class _State(NamedTuple):
    taken: Int[Array, ""]
    params: Float[Array, "batch n"]
    inner: Any  # jaxopt's own state; its `iter_num` is shared, everything else has a row per sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class JaxoptAnderson(Solver):
    """jaxopt's Anderson acceleration.

        α = argmin ‖Σ_j α_j r_j‖² + ridge ‖α‖²  with  Σ_j α_j = 1,   z_{k+1} = Σ_j α_j (z_j + damping r_j),   r = f(z) - z

    over the last `history` iterates; the first `history` steps are plain iteration. The iterates are those of
    `jaxopt.AndersonAcceleration` on each sample alone; the stopping rule, the statistics and the derivative are this package's. It is
    here to compare with: the ridge is absolute, so that it takes over once the residuals are below its square root, and
    `deqflow.implicit.Anderson`, which works on differences of scaled residuals, usually needs fewer evaluations.

    Args:
      history: number of iterates kept, two states each.
      mixing_frequency: only every so many steps are accelerated, the others are plain iteration.
      damping: the fraction of the residual that is added, in (0, 1]; jaxopt's `beta`.
      ridge: absolute regularisation of the Gram matrix of residuals.
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: step limit.
      check_every: the residual is looked at after every so many steps.
      precision: of the matrix products in `f`.
      bfloat16_until: the relative residual down to which these products are rounded to bfloat16.

    Raises:
      ImportError: when it is used and jaxopt is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> import deqflow
      >>> sol = deqflow.fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=JaxoptAnderson(rtol=1e-5))
      >>> print(f"{sol.value.item():.4f}")
      0.7391

    Blondel et al., "Efficient and modular implicit differentiation", 2022; Pollock and Rebholz, "Anderson acceleration for contractive
    and noncontractive operators", 2019.
    """

    history: Annotated[int, Range(ge=2)] = 5
    mixing_frequency: Annotated[int, Range(ge=1)] = 1
    damping: Annotated[float, Range(gt=0, le=1)] = 1.0
    ridge: Annotated[float, Range(ge=0)] = 1e-5

    def init(self, z0: Vectors) -> _State:
        return _start(self._build, z0)

    def step(self, f: Map, state: _State) -> _State:
        return _advance(self._build, f, state)

    def value(self, state: _State) -> Iterate:
        return _last(state)

    def _build(self, evaluate: Evaluate) -> Any:
        return _jaxopt().AndersonAcceleration(
            evaluate,
            history_size=self.history,
            mixing_frequency=self.mixing_frequency,
            beta=self.damping,
            ridge=self.ridge,
            has_aux=True,
            jit=False,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class JaxoptBroyden(Solver):
    """jaxopt's limited-memory Broyden method, with a fixed step size.

        z_{k+1} = z_k - damping B_k (z_k - f(z_k)),   B_0 = I,   B_{k+1} y = s

    where `s` is the last step, `y` how `z - f(z)` changed along it, and `B` is kept as `history` rank-one terms. The iterates are those
    of `jaxopt.Broyden(fun=lambda z: z - f(z), stepsize=damping)` on each sample alone; the stopping rule, the statistics and the
    derivative are this package's. Two things differ from what jaxopt does by default. There is no line search: it would
    differentiate, in reverse mode and sample by sample, a function that is only known for all samples at once. And a step that does
    not move, for which Broyden's update is 0/0, leaves B as it is instead of filling it with NaN.

    Args:
      history: number of rank-one terms kept, two states each; `max_steps` of them if `None`, as in jaxopt. Fewer than there are steps
        may diverge on easy problems: what is left of B when a term is dropped is no matrix of Broyden's.
      damping: the fixed step size, in (0, 1].
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: step limit.
      check_every: the residual is looked at after every so many steps.
      precision: of the matrix products in `f`.
      bfloat16_until: the relative residual down to which these products are rounded to bfloat16.

    Raises:
      ImportError: when it is used and jaxopt is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> import deqflow
      >>> sol = deqflow.fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=JaxoptBroyden(rtol=1e-5))
      >>> print(f"{sol.value.item():.4f} after {sol.stats.steps.item()} steps")
      0.7391 after 6 steps

    Blondel et al., "Efficient and modular implicit differentiation", 2022; Broyden, "A class of methods for solving nonlinear
    simultaneous equations", 1965.
    """

    # The 0/0 of a step that does not move, the first evaluation among them, is masked in the value and not in the derivative.
    differentiable_steps: ClassVar[bool] = False

    history: Annotated[int, Range(ge=1)] | None = None
    damping: Annotated[float, Range(gt=0, le=1)] = 1.0

    def init(self, z0: Vectors) -> _State:
        # For the identity, z - f(z) = 0: the first step goes nowhere and evaluates f at z0.
        return _start(self._build, z0)

    def step(self, f: Map, state: _State) -> _State:
        taken, params, inner = _advance(self._build, f, state)
        # A term c dᵀ of which d is zero is none.
        known = jnp.all(jnp.isfinite(inner.d_history), axis=-1, keepdims=True)
        return _State(taken, params, inner._replace(d_history=jnp.where(known, inner.d_history, 0)))

    def value(self, state: _State) -> Iterate:
        return _last(state)

    def _build(self, evaluate: Evaluate) -> Any:
        def excess(z: Row) -> tuple[Row, Any]:
            fz, point = evaluate(z)
            return z - fz, point

        history = self.max_steps if self.history is None else self.history
        return _jaxopt().Broyden(excess, history_size=history, stepsize=self.damping, has_aux=True, jit=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JaxoptFixedPoint(Solver):
    """jaxopt's plain fixed-point iteration.

        z_{k+1} = f(z_k)

    The iterates are those of `jaxopt.FixedPointIteration` on each sample alone, and of `deqflow.implicit.Picard`; the stopping rule,
    the statistics and the derivative are this package's.

    Args:
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: step limit.
      check_every: the residual is looked at after every so many steps.
      precision: of the matrix products in `f`.
      bfloat16_until: the relative residual down to which these products are rounded to bfloat16.

    Raises:
      ImportError: when it is used and jaxopt is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> import deqflow
      >>> sol = deqflow.fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=JaxoptFixedPoint(rtol=1e-5))
      >>> print(f"{sol.value.item():.4f} after {sol.stats.steps.item()} steps")
      0.7391 after 30 steps

    Blondel et al., "Efficient and modular implicit differentiation", 2022.
    """

    def init(self, z0: Vectors) -> _State:
        return _start(self._build, z0)

    def step(self, f: Map, state: _State) -> _State:
        return _advance(self._build, f, state)

    def value(self, state: _State) -> Iterate:
        return _last(state)

    def _build(self, evaluate: Evaluate) -> Any:
        return _jaxopt().FixedPointIteration(evaluate, has_aux=True, jit=False)


def _jaxopt() -> Any:
    """The package, imported now: it is no longer maintained and says so by a warning, which none but its users need see."""
    try:
        return importlib.import_module("jaxopt")
    except ModuleNotFoundError as error:
        if error.name != "jaxopt":
            raise
        raise ImportError("the solvers JaxoptAnderson, JaxoptBroyden and JaxoptFixedPoint need jaxopt: pip install jaxopt") from error


def _start(build: Build, z0: Vectors) -> _State:
    """The state of jaxopt at `z0` before any evaluation: its own, for the identity in place of `f`."""
    # jaxopt makes some buffers in the default type whatever the state's, so that it runs in that; f is evaluated in its own.
    params = matrix(z0).astype(jnp.result_type(float))
    inner = jax.vmap(build(lambda z: (z, None)).init_state)(params)
    counter = jnp.zeros((), inner.iter_num.dtype)
    return _State(jnp.zeros((), jnp.int32), params, _strong(inner._replace(iter_num=counter, aux=(z0, z0))))


def _advance(build: Build, f: Map, state: _State) -> _State:
    """One step of jaxopt on every row, with a single evaluation of `f`.

    jaxopt's step is written for one sample and mapped over the rows. `f` closes over data of all samples and cannot be evaluated for
    one of them; so what the step calls is a placeholder, which mapping replaces by `f` of all rows.
    """
    like = state.inner.aux[0]

    @custom_vmap
    def evaluate(z: Row) -> tuple[Row, tuple[Array, Array]]:
        own = z.astype(like.dtype).reshape(like.shape[1:])
        return z, (own, own)  # never computed; it says what the shapes and types are

    @evaluate.def_vmap
    def _(size: int, mapped: list[bool], z: Float[Array, "batch n"]) -> tuple[Any, Any]:
        point = z.astype(like.dtype).reshape(like.shape)
        image = f(point)
        return (matrix(image).astype(z.dtype), (point, image)), (True, (True, True))

    # The step number is the same for all samples. Left out of the mapping, it keeps jaxopt's conditionals conditionals.
    rows = jax.tree.map(lambda _: 0, state.inner)._replace(iter_num=None)
    step = build(evaluate).update
    params, inner = jax.vmap(lambda *row: tuple(step(*row)), (0, rows), (0, rows))(state.params, state.inner)
    return _State(state.taken + 1, params, _strong(inner))


def _last(state: _State) -> Iterate:
    """The point evaluated last, as the function itself has noted it."""
    z, f = state.inner.aux
    return Iterate(z, f, per_row(z, state.taken, jnp.int32))


def _strong(tree: Any) -> Any:
    """Without weak types, which would compile the loop around this twice."""
    return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), tree)
