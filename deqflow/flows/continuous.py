"""Flows in continuous time: the solution of an ordinary differential equation."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.bijector import Bijector, Transformed, check_event
from deqflow.registry import Range, check_ranges


class Continuous(Bijector):
    """The flow of a vector field, a neural ordinary differential equation: `z = x(T)` where `dx/dt = v(t, x)`, `x(0) = x`.

        log |det ∂z/∂x| = ∫₀ᵀ tr ∂v/∂x dt

    The inverse integrates the same field backwards. Any field that is Lipschitz in x makes a bijection, and the integral comes with the
    solution. The trace is exact, by as many products with the Jacobian as there are dimensions, or Hutchinson's estimate
    `mean_i εᵢᵀ ∂v/∂x εᵢ` with random signs εᵢ that stay the same for the whole solve, which makes it FFJORD.

    Each sample is solved with steps of its own. What a solve could not bring to its end is NaN, and so is what comes from a non-finite
    input; both are `failed` in the diagnostics, and with the default adjoint neither contributes to the gradient of a loss that leaves
    them out. Needs `deqflow[flows]`.

    Args:
      field: a Flax module `v(t, x)`, or `v(t, x, condition=...)` where there is a condition, of a scalar time and states
        `(batch, *event_shape)`; it answers with the states' shape. Smooth fields (tanh, silu, softplus) take fewer steps.
      event_shape: shape of one sample.
      time: T.
      probes: number of random vectors ε of the estimated trace, `None` for the exact one.
      rtol: relative error of one step; by default `ε^(2/3)` with ε the precision of the input: 2e-5 in float32, 4e-11 in float64.
      atol: absolute error of one step; by default the same.
      max_steps: accepted and rejected steps after which a solve has failed.
      solver: one of diffrax's; by default `diffrax.Tsit5()`.
      adjoint: how the solve is differentiated, by one of diffrax's; by default `diffrax.RecursiveCheckpointAdjoint()`, which has reverse
        mode alone. `diffrax.DirectAdjoint()` has forward mode too, `diffrax.BacksolveAdjoint()` constant memory and an error of its own.

    Raises:
      ValueError: if a number is out of its range.
      ImportError: when it is called, if diffrax is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> class Spread(nnx.Module):
      ...     def __call__(self, t, x):
      ...         return 0.5 * x
      >>> z, log_det, report = Continuous(Spread(), (2,)).forward_and_log_det(jnp.array([[1.0, 2.0]]))
      >>> print(jnp.log(z / jnp.array([[1.0, 2.0]])).round(2), log_det.round(2), report["failed"])
      [[0.5 0.5]] [1.] [False]

    Chen, Rubanova, Bettencourt, Duvenaud: Neural ordinary differential equations. NeurIPS 2018. Grathwohl, Chen, Bettencourt, Sutskever,
    Duvenaud: FFJORD: free-form continuous dynamics for scalable reversible generative models. ICLR 2019.
    """

    def __init__(
        self,
        field: nnx.Module,
        event_shape: tuple[int, ...],
        *,
        time: Annotated[float, Range(gt=0)] = 1.0,
        probes: Annotated[int | None, Range(ge=1)] = None,
        rtol: Annotated[float | None, Range(gt=0)] = None,
        atol: Annotated[float | None, Range(gt=0)] = None,
        max_steps: Annotated[int, Range(ge=1)] = 1000,
        solver: Any = None,
        adjoint: Any = None,
    ) -> None:
        check_ranges(Continuous.__init__, locals())
        self.field = field
        self.event_shape = event_shape
        self.time = time
        self.probes = probes
        self.rtol = rtol
        self.atol = atol
        self.max_steps = max_steps
        self.solver = solver
        self.adjoint = adjoint

    def forward_and_log_det(
        self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        return self._integrate(x, 0.0, self.time, condition, key)

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        """Map latent to data; with the key of the forward direction the estimated log-determinants agree."""
        return self._integrate(z, self.time, 0.0, condition, key)

    def _integrate(self, x: Array, start: float, end: float, condition: Array | None, key: Key[Array, ""] | None) -> Transformed:
        check_event(self, x)
        directions = self._directions(x, key)
        usable = jnp.isfinite(x).reshape(x.shape[0], -1).all(1)
        if condition is not None:
            usable &= jnp.isfinite(condition).all(1)
            condition = jnp.where(usable[:, None], condition, 0)
        x = jnp.where(_beside(usable, x), x, 0)  # a solve cannot end from a state that is not finite, and its derivative is NaN

        graphdef, params, rest = nnx.split(self.field, _is_real, ..., graph=False)

        def solve(inputs: Any, rest: Any, ends: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            params, x, condition, directions = inputs
            axes = (0, 0, None if condition is None else 0, None if self.probes is None else 0)
            field: Any = nnx.merge(graphdef, params, rest)
            return jax.vmap(lambda x, end, *given: self._solve(field, x, start, end, *given), axes)(x, ends, condition, directions)

        ends = jnp.full(x.shape[0], end, x.dtype)
        inputs = (params, x, condition, directions)
        if self.adjoint is None:
            (value, traces), (finished, steps) = _guarded(solve, start)(inputs, rest, ends)
        else:
            (value, traces), (finished, steps) = solve(inputs, rest, ends)
        # A solver that the limit stopped has a finite state at another time: nothing to take for an answer.
        ok = usable & finished
        log_det = traces.sum(1) if self.probes is None else traces.mean(1)
        report = {"steps": steps, "failed": ~ok}
        if self.probes is not None and self.probes > 1:
            report["standard_error"] = jax.lax.stop_gradient(traces.std(1, ddof=1) / math.sqrt(self.probes))
        return Transformed(jnp.where(_beside(ok, value), value, jnp.nan), jnp.where(ok, log_det, jnp.nan), report)

    def _directions(self, x: Array, key: Key[Array, ""] | None) -> Array:
        """The unit vectors, the same for every sample, or `probes` vectors of random signs for each."""
        if self.probes is None:
            return jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, *self.event_shape)
        if key is None:
            raise ValueError(
                "Continuous estimates its log-determinant with random probes: pass key=jax.random.key(...), or set probes=None"
            )
        return jax.random.rademacher(key, (x.shape[0], self.probes, *self.event_shape), x.dtype)

    def _solve(
        self, field: Any, x: Array, start: float, end: Array, condition: Array | None, directions: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """The last state of one sample and the integral for each direction; whether it arrived, and after how many steps."""
        diffrax = _diffrax()
        graphdef, params = nnx.split(field, graph=False)

        def slope(t: Array, state: tuple[Array, Array], args: Any) -> tuple[Array, Array]:
            """The velocity, and a product of its Jacobian for each direction."""
            params, condition, directions = args
            field: Any = nnx.merge(graphdef, params)
            given = {} if condition is None else {"condition": condition[None]}

            def velocity(x: Array) -> Array:
                v = field(t, x[None], **given)
                if v.shape != (1, *x.shape):
                    raise ValueError(f"the field of Continuous must return the shape of its states, {(1, *x.shape)}, got {v.shape}")
                return v[0].astype(x.dtype)

            v, pushed = jax.vmap(lambda d: jax.jvp(velocity, (state[0],), (d,)), out_axes=(None, 0))(directions)
            return v, (pushed * directions).reshape(len(directions), -1).sum(1)

        tolerance = float(jnp.finfo(x.dtype).eps) ** (2 / 3)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Tsit5() if self.solver is None else self.solver,
            jnp.asarray(start, x.dtype),
            end,
            None,  # the controller chooses the first step
            (x, jnp.zeros(len(directions), x.dtype)),
            (params, condition, directions),
            stepsize_controller=diffrax.PIDController(rtol=self.rtol or tolerance, atol=self.atol or tolerance),
            adjoint=diffrax.RecursiveCheckpointAdjoint() if self.adjoint is None else self.adjoint,
            max_steps=self.max_steps,
            throw=False,
        )
        value, traces = (leaf[-1] for leaf in solution.ys)
        return (value, traces), (solution.result == diffrax.RESULTS.successful, solution.stats["num_steps"])


def _guarded(solve: Callable[[Any, Any, Array], Any], start: float) -> Callable[[Any, Any, Array], Any]:
    """`solve` with a reverse mode to which a failed sample contributes zero, also where its field overflowed.

    To mask what comes back is not enough: zero times the infinite derivative of a rejected step is NaN, and lands in the gradient of the
    parameters, which all samples share. Where a sample failed, all are solved again with no time for that one.
    """

    @jax.custom_vjp
    def guarded(inputs: Any, rest: Any, ends: Array) -> Any:
        return solve(inputs, rest, ends)

    def forward(inputs: Any, rest: Any, ends: Array) -> tuple[Any, Any]:
        result, pull, report = jax.vjp(lambda inputs: solve(inputs, rest, ends), inputs, has_aux=True)
        return (result, report), (pull, inputs, rest, ends, report[0])

    def backward(saved: Any, cotangents: Any) -> Any:
        pull, inputs, rest, ends, finished = saved

        def again(cotangents: Any) -> Any:
            params, x, *others = inputs
            safe = (params, jnp.where(_beside(finished, x), x, 0), *others)
            _, pull, _ = jax.vjp(lambda inputs: solve(inputs, rest, jnp.where(finished, ends, start)), safe, has_aux=True)
            return pull(cotangents)

        slopes = jax.lax.cond(finished.all(), lambda cotangents: pull(cotangents), again, cotangents[0])
        return *slopes, None, None

    guarded.defvjp(forward, backward)
    return guarded


def _is_real(path: Any, variable: Any) -> bool:
    """Whether a variable has a derivative."""
    return jnp.issubdtype(variable.dtype, jnp.inexact)


def _diffrax() -> ModuleType:
    """diffrax, loaded when it is needed."""
    try:
        import diffrax
    except ImportError as error:
        raise ImportError("Continuous needs diffrax: pip install 'deqflow[flows]'") from error
    return diffrax


def _beside(flags: Array, x: Array) -> Array:
    """One flag per sample, with axes to broadcast against `x`."""
    return flags.reshape(-1, *(1 for _ in x.shape[1:]))
