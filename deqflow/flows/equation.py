"""Bijectors given by an equation: residual blocks, implicit flows, and what both are."""

import abc
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from deqflow.flows.bijector import Bijector, Transformed, check_event, split_key
from deqflow.flows.log_determinant import Exact, LogDet, log_det
from deqflow.implicit import Anderson, Gradient, Implicit, Solver, fixed_point
from deqflow.implicit.trees import over
from deqflow.nn import lipschitz_bound

_Map = Callable[[Array], Array]

Expansion = Literal["warn", "refuse", "ignore"]
"""What to do with a map whose Lipschitz constant is not certified to be below 1."""


class Equation(Bijector):
    """A bijector whose two ends satisfy `x + g_x(x) = z + g_z(z)`, each side with a Lipschitz constant of its g below 1.

    Given one end, its side is evaluated and the other end solved for, `b = u - g_b(b)` with `u = a + g_a(a)`: a contraction, which is
    differentiated by the implicit function theorem. The log-determinant from a to b is `log det(I + ∂g_a/∂a) - log det(I + ∂g_b/∂b)`.
    Diagnostics are `standard_error`, of the log-determinant, where that is estimated with two probes or more, and `solve`, the statistics
    of the solver per sample, where there was something to solve. A sample that failed is NaN.

    Attributes:
      log_det: how log-determinants are computed in training mode.
      eval_log_det: how in evaluation mode.
      solver: of the equation in training mode.
      eval_solver: in evaluation mode; `None`, for either, is Anderson acceleration to a few roundings of the numbers' type.
      gradient: of the solution.
    """

    log_det: LogDet
    eval_log_det: LogDet
    solver: Solver | None
    eval_solver: Solver | None
    gradient: Gradient
    deterministic: bool  # set by model.eval() and model.train()

    @property
    @abc.abstractmethod
    def maps(self) -> tuple[Callable[..., Array], ...]:
        """Every g that there is, that of the data first."""

    @abc.abstractmethod
    def sides(self, condition: Array | None) -> tuple[_Map | None, _Map | None]:
        """g_x and g_z as functions of one argument, `None` for zero."""

    def forward_and_log_det(
        self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        g_x, g_z = self.sides(condition)
        return self._across(g_x, g_z, x, key)

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)
        g_x, g_z = self.sides(condition)
        return self._across(g_z, g_x, z, key)

    def _across(self, known: _Map | None, wanted: _Map | None, a: Array, key: Key[Array, ""] | None) -> Transformed:
        """From the end `a` with its g known to the other end."""
        estimator = self.eval_log_det if self.deterministic else self.log_det
        value = jnp.zeros(len(a), a.dtype)
        variance, diagnostics = value, dict[str, Any]()
        b = a
        if known is not None:
            b = a + known(a)
            estimate = log_det(known, a, estimator, split_key(key, 0))
            value, variance = value + estimate.value, variance + estimate.standard_error**2
        if wanted is not None:
            u = b
            # From the known end: the two are nearer to each other than to u, as far as the sides are alike.
            solver = (self.eval_solver if self.deterministic else self.solver) or to_rounding(a.dtype)
            b, stats = fixed_point(lambda b: u - wanted(b), lax.stop_gradient(a), solver=solver, gradient=self.gradient)
            estimate = log_det(wanted, b, estimator, split_key(key, 1))
            value, variance = value - estimate.value, variance + estimate.standard_error**2
            failed = stats.failed
            b, value = jnp.where(over(failed, b), jnp.nan, b), jnp.where(failed, jnp.nan, value)
            diagnostics["solve"] = stats
        if estimator.knows_error:
            diagnostics["standard_error"] = jnp.sqrt(variance)
        return Transformed(b, value, diagnostics)


class Residual(Equation):
    """An invertible residual block: `z = x + g(x)`, with a Lipschitz constant of g below 1.

    Forward it is explicit, `log det(I + ∂g/∂x)` from an estimator. Backward it is the equilibrium of `x = z - g(x)`: a deep equilibrium
    layer, with the same linear solve for its gradient. See `Equation` for diagnostics.

    Args:
      g: any module `g(x) -> (batch, *event)` or, if conditional, `g(x, condition=...)`, that treats every sample by itself. Where it has
        `prepare(condition)`, which returns a function of x, what that computes is computed once per transformation.
      event_shape: shape of one sample.
      log_det: how the log-determinant is computed in training mode.
      eval_log_det: how in evaluation mode; `None` for the same.
      solver: of the inverse in training mode; `None` for Anderson acceleration to a few roundings of the numbers' type.
      eval_solver: in evaluation mode; `None` likewise.
      gradient: of the inverse.
      expansion: what to do if `lipschitz_bound(g)` is not below 1, so that nothing says that the block is invertible: `warn`, `refuse` or
        `ignore`.

    Raises:
      ValueError: if g is refused, or on use, if x has the wrong shape or a stochastic estimator gets no key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> block = Residual(lambda x: 0.5 * jnp.sin(x), (2,), expansion="ignore")     # we know better
      >>> x = jnp.array([[0.3, -1.0]])
      >>> z, log_det, _ = block.forward_and_log_det(x)
      >>> back = block.inverse_and_log_det(z)
      >>> bool(jnp.allclose(back.value, x, atol=1e-5)), bool(back.diagnostics["solve"].converged.all())
      (True, True)

    Behrmann, Grathwohl, Chen, Duvenaud and Jacobsen, "Invertible residual networks", 2019; Chen, Behrmann, Duvenaud and Jacobsen,
    "Residual flows for invertible generative modeling", 2019.
    """

    def __init__(
        self,
        g: Callable[..., Array],
        event_shape: tuple[int, ...],
        *,
        log_det: LogDet = Exact(),
        eval_log_det: LogDet | None = None,
        solver: Solver | None = None,
        eval_solver: Solver | None = None,
        gradient: Gradient = Implicit(),
        expansion: Expansion = "warn",
    ) -> None:
        _check(g, "g", expansion)
        self.event_shape = event_shape
        self.g = g
        self.log_det = log_det
        self.eval_log_det = log_det if eval_log_det is None else eval_log_det
        self.solver = solver
        self.eval_solver = eval_solver
        self.gradient = gradient
        self.deterministic = False

    @property
    def maps(self) -> tuple[Callable[..., Array], ...]:
        return (self.g,)

    def sides(self, condition: Array | None) -> tuple[_Map | None, _Map | None]:
        return _given(self.g, condition), None


class ImplicitFlow(Equation):
    """The bijector whose ends satisfy `z + g_z(z) = x + g_x(x)`, with Lipschitz constants of g_x and g_z below 1.

    It is a residual block followed by the inverse of another, `Chain([Residual(g_x), Inverse(Residual(g_z))])`, as one equation. A residual
    block can stretch by at most 1 + c < 2 and shrink by 1 - c; with an inverse behind it both directions reach as far. See `Equation` for
    diagnostics.

    Args:
      g_x: as the g of `Residual`.
      g_z: likewise.
      event_shape: shape of one sample.
      log_det: how log-determinants are computed in training mode.
      eval_log_det: how in evaluation mode; `None` for the same.
      solver: of the equation in training mode; `None` for Anderson acceleration to a few roundings of the numbers' type.
      eval_solver: in evaluation mode; `None` likewise.
      gradient: of the solution.
      expansion: what to do if `lipschitz_bound` of g_x or g_z is not below 1: `warn`, `refuse` or `ignore`.

    Raises:
      ValueError: if g_x or g_z is refused, or on use, if x has the wrong shape or a stochastic estimator gets no key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> flow = ImplicitFlow(lambda x: 0.9 * x, lambda z: -0.9 * z, (1,), expansion="ignore")
      >>> print(jnp.round(flow.forward_and_log_det(jnp.array([[1.0]])).value, 3))     # 1.9 / 0.1
      [[19.]]

    Lu, Chen, Li, Wang and Zhu, "Implicit normalizing flows", 2021.
    """

    def __init__(
        self,
        g_x: Callable[..., Array],
        g_z: Callable[..., Array],
        event_shape: tuple[int, ...],
        *,
        log_det: LogDet = Exact(),
        eval_log_det: LogDet | None = None,
        solver: Solver | None = None,
        eval_solver: Solver | None = None,
        gradient: Gradient = Implicit(),
        expansion: Expansion = "warn",
    ) -> None:
        _check(g_x, "g_x", expansion)
        _check(g_z, "g_z", expansion)
        self.event_shape = event_shape
        self.g_x = g_x
        self.g_z = g_z
        self.log_det = log_det
        self.eval_log_det = log_det if eval_log_det is None else eval_log_det
        self.solver = solver
        self.eval_solver = eval_solver
        self.gradient = gradient
        self.deterministic = False

    @property
    def maps(self) -> tuple[Callable[..., Array], ...]:
        return (self.g_x, self.g_z)

    def sides(self, condition: Array | None) -> tuple[_Map | None, _Map | None]:
        return _given(self.g_x, condition), _given(self.g_z, condition)


def _check(g: Callable[..., Array], name: str, expansion: Expansion) -> None:
    """Warn of, or refuse, a map that is not certified to contract; inside `jit` there is nothing to certify it by."""
    if expansion == "ignore" or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(g)):
        return
    bound = lipschitz_bound(g)
    if bound < 1:
        return
    known = (
        f"the certified Lipschitz bound of {name} is {bound:.4g}"
        if bound < math.inf
        else f"nothing is known of {name}'s Lipschitz constant"
    )
    message = (
        f"{known}, but x + {name}(x) is only known to be invertible below 1; use LipschitzMLP(bound=0.98) or give {name} a method "
        "lipschitz_bound, or pass expansion='ignore' if you know better"
    )
    if expansion == "refuse":
        raise ValueError(message)
    warnings.warn(message, stacklevel=4)


def to_rounding(dtype: Any) -> Solver:
    """The solver of an equation whose error is the residual over `1 - c`, so that nothing should be left to a tolerance."""
    return Anderson(rtol=4 * float(jnp.finfo(dtype).eps), max_steps=1000)


def _given(g: Callable[..., Array], condition: Array | None) -> _Map:
    """G with its condition and weights given."""
    if hasattr(g, "prepare"):
        return g.prepare(condition)  # pyright: ignore[reportFunctionMemberAccess]
    return g if condition is None else lambda x: g(x, condition=condition)
