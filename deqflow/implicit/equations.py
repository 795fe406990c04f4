"""The equations one can solve: fixed points, roots and stationary points. All are one `solve, then attach`."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from deqflow.implicit.anderson import Anderson
from deqflow.implicit.attach import detach
from deqflow.implicit.gradient import Gradient, Implicit
from deqflow.implicit.loop import Request
from deqflow.implicit.newton import Newton
from deqflow.implicit.solution import Solution
from deqflow.implicit.solver import Solver
from deqflow.implicit.trees import Map, as_floating, check_like, on_rows, rows

T = TypeVar("T")


def fixed_point(
    f: Callable[[T], Any],
    z0: T,
    *,
    solver: Solver = Anderson(),
    gradient: Gradient = Implicit(),
    batched: bool = True,
    budget: Int[Array, ""] | int | None = None,
    trace: bool = False,
    states: tuple[int, ...] = (),
    has_aux: bool = False,
) -> Solution[T]:
    """Solve `z = f(z)` and differentiate the solution with respect to all that `f` closes over.

        ‖f(z) - z‖₂ <= atol + rtol ‖f(z)‖₂   per sample

    The derivative with respect to `z0` is zero, but for gradients that differentiate the steps themselves. Samples are independent: with
    `batched`, neither the value nor the number of steps nor the gradient of a sample depends on the others. Outside of `jit` every call
    compiles anew.

    Args:
      f: a function from pytrees like `z0` to the same structure, shapes and dtypes; it may close over anything, traced or not. With
        `batched` it must treat every sample by itself.
      z0: initial guess, a pytree of floating-point arrays; with `batched` every leaf has a leading batch axis. The solution of a problem
        nearby makes a warm start.
      solver: how to solve.
      gradient: how to differentiate.
      batched: whether there is one equation per entry of the leading axis, or a single one.
      budget: at most this many steps; may be traced, so that changing it does not recompile. `solver.max_steps` caps it.
      trace: whether `stats.trace` shall hold the relative residual after every step.
      states: numbers of steps, in increasing order, at which to look at the solve on its way: the solution's `states` are then one
        application of `f` each to the best iterates so far, for losses that ask the early ones to be right too.
      has_aux: whether `f` returns `(f(z), aux)`; the `aux` at the solution, by one more evaluation, is then the solution's.

    Returns:
      A `Solution` whose `value` is the best iterate and whose `stats` say, per sample, how the solve ended. A failed sample (diverged or
      non-finite) has a finite placeholder for a value and contributes exactly zero to every gradient.

    Raises:
      TypeError: if `z0` holds anything but real floating-point arrays.
      ValueError: if `f` does not return what it takes, the leaves have no common batch axis, or the gradient does not work with the solver.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> W = 0.5 * jnp.eye(3)
      >>> def loss(W, x):
      ...     return fixed_point(lambda z: jnp.tanh(z @ W + x), jnp.zeros_like(x)).check().sum()
      >>> jax.grad(loss)(W, jnp.ones((2, 3))).shape
      (3, 3)
      >>> print(jnp.round(fixed_point(lambda z: 3 * z + 1, jnp.zeros((1, 2))).value, 3))
      [[-0.5 -0.5]]

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019.
    """
    z0 = as_floating(z0, "z0")
    mapped = on_rows(_first(f, has_aux), z0, batched, "the value of f")
    if list(states) != sorted(set(states)) or any(mark < 0 for mark in states):
        raise ValueError(f"states must be numbers of steps in increasing order, got {states}")
    solution = _solve(mapped, z0, solver, gradient, batched, Request(budget, trace, tuple(states)))
    return _with_aux(solution, f) if has_aux else solution


def root(
    F: Callable[[T], Any],
    y0: T,
    *,
    solver: Solver = Newton(),
    gradient: Gradient = Implicit(),
    batched: bool = True,
    budget: Int[Array, ""] | int | None = None,
    trace: bool = False,
    has_aux: bool = False,
) -> Solution[T]:
    """Solve `F(y) = 0` and differentiate the solution with respect to all that `F` closes over.

        ‖F(y)‖₂ <= atol + rtol ‖y + F(y)‖₂   per sample

    It is the fixed point of `y + F(y)`, and every solver of those may be asked; `Newton` and `Broyden` care least about the scale and the
    sign of F. The others are arguments as in `fixed_point`.

    Args:
      F: a function from pytrees like `y0` to the same structure, shapes and dtypes. A value that is tiny beside `y` drowns in the rounding
        of `y + F(y)`: scale it so that it is not.
      y0: initial guess, a pytree of floating-point arrays.
      solver: how to solve.
      gradient: how to differentiate.
      batched: whether there is one equation per entry of the leading axis, or a single one.
      budget: at most this many steps.
      trace: whether to keep the relative residual after every step.
      has_aux: whether `F` returns `(F(y), aux)`.

    Returns:
      A `Solution`, as from `fixed_point`.

    Raises:
      TypeError: if `y0` holds anything but real floating-point arrays.
      ValueError: as `fixed_point` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def square_root(x):
      ...     return root(lambda y: y**2 - x, jnp.ones_like(x)).value
      >>> x = jnp.array([4.0, 9.0])
      >>> print(square_root(x), jax.grad(lambda x: square_root(x).sum())(x))
      [2. 3.] [0.25       0.16666667]
    """
    y0 = as_floating(y0, "y0")
    first = _first(F, has_aux)

    def moved(y: T) -> T:
        out = first(y)
        check_like(out, y, "the value of F")
        return jax.tree.map(jnp.add, y, out)

    solution = _solve(on_rows(moved, y0, batched, "the value of F"), y0, solver, gradient, batched, Request(budget, trace))
    return _with_aux(solution, F) if has_aux else solution


def argmin(
    f: Callable[[T], Any],
    y0: T,
    *,
    solver: Solver = Newton(),
    gradient: Gradient = Implicit(),
    batched: bool = True,
    budget: Int[Array, ""] | int | None = None,
    trace: bool = False,
    has_aux: bool = False,
) -> Solution[T]:
    """Find a stationary point of a smooth objective, `∇f(y) = 0`, and differentiate it: hypergradients.

        ‖∇f(y)‖₂ <= atol + rtol ‖y - ∇f(y)‖₂   per sample,      dy = -(∇²f)⁻¹ ∂∇f

    It is a minimum where the objective is convex, or where a descent led to it: `Newton` finds stationary points of every kind, while
    `Picard(damping)` is gradient descent with that step length, and `Anderson` and `Broyden` accelerate it.

    Args:
      f: the objective; from pytrees like `y0` to one number per sample, of shape `(batch,)`, or with `batched=False` to a scalar. It must
        be twice differentiable in JAX.
      y0: initial guess, a pytree of floating-point arrays.
      solver: how to solve `y = y - ∇f(y)`.
      gradient: how to differentiate.
      batched: whether there is one objective per entry of the leading axis, or a single one.
      budget: at most this many steps.
      trace: whether to keep the relative residual after every step.
      has_aux: whether `f` returns `(f(y), aux)`.

    Returns:
      A `Solution`, as from `fixed_point`; its residuals are norms of the gradient.

    Raises:
      TypeError: if `y0` holds anything but real floating-point arrays.
      ValueError: if the objective is not one number per sample, or as `fixed_point` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> X, t = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, 3.0, 5.0])
      >>> def ridge(penalty):
      ...     loss = lambda w: jnp.sum((X @ w - t) ** 2) + penalty * jnp.sum(w**2)
      ...     return argmin(loss, jnp.zeros(2), batched=False).check()
      >>> print(jnp.round(ridge(0.0), 3))
      [1. 2.]
      >>> jax.jacobian(ridge)(1.0).shape
      (2,)

    Gould, Fernando, Cherian, Anderson, Cruz and Guo, "On differentiating parameterized argmin and argmax problems", 2016.
    """
    y0 = as_floating(y0, "y0")
    first = _first(f, has_aux)
    expected = (jax.tree.leaves(y0)[0].shape[:1]) if batched else ()

    def total(y: T) -> Array:
        value = first(y)
        if jnp.shape(value) != expected:
            raise ValueError(f"the objective f must return one number per sample, of shape {expected}, got shape {jnp.shape(value)}")
        return jnp.sum(value)

    def descended(y: T) -> T:
        return jax.tree.map(jnp.subtract, y, jax.grad(total)(y))

    solution = _solve(on_rows(descended, y0, batched, "the gradient of f"), y0, solver, gradient, batched, Request(budget, trace))
    return _with_aux(solution, f) if has_aux else solution


def implicit_function(
    F: Callable[..., T], y0: T, *, solver: Solver = Newton(), gradient: Gradient = Implicit(), batched: bool = True
) -> Callable[..., T]:
    """The function `g` with `F(g(x), x) = 0`, near `y0`, differentiable to any order.

        ∂g/∂x = -(∂F/∂y)⁻¹ ∂F/∂x

    Args:
      F: the equation's left-hand side, `F(y, *x)`.
      y0: where every solve starts, a pytree of floating-point arrays.
      solver: how to solve.
      gradient: how to differentiate.
      batched: whether there is one equation per entry of the leading axis of `y0`, or a single one.

    Returns:
      `g(*x)`; it raises `ConvergenceError` where a solve outside of `jit` does not converge.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> W = implicit_function(lambda w, x: w * jnp.exp(w) - x, jnp.array(0.5), batched=False)  # Lambert's function
      >>> print(f"{W(1.0):.4f} {jax.grad(W)(1.0):.4f} {jax.grad(jax.grad(W))(1.0):.4f}")
      0.5671 0.3619 -0.2145
    """

    def g(*x: Any) -> T:
        return root(lambda y: F(y, *x), y0, solver=solver, gradient=gradient, batched=batched).check()

    return g


def _solve(mapped: Map, z0: T, solver: Solver, gradient: Gradient, batched: bool, request: Request) -> Solution[T]:
    """The fixed point of a map of rows, for an initial guess of definite type."""
    gradient.check(solver)
    flat, split = rows(z0, batched)
    _warn_below_floor(solver, flat.dtype)
    value, stats = gradient.solve(solver, mapped, flat, request)
    with jax.default_matmul_precision(solver.precision):
        states = tuple(split(detach(stats.failed, z, mapped)) for z in stats.states)
    stats = stats._replace(states=())
    return Solution(split(value), stats if batched else stats.single(), states=states)


def _first(f: Callable[[T], Any], has_aux: bool) -> Callable[[T], Any]:
    return (lambda z: f(z)[0]) if has_aux else f


def _with_aux(solution: Solution[T], f: Callable[[T], Any]) -> Solution[T]:
    return dataclasses.replace(solution, aux=f(solution.value)[1])


def _warn_below_floor(solver: Solver, dtype: Any) -> None:
    """Warn where rounding alone keeps the residual above the tolerance."""
    # TF32 and bfloat16 products, the default on accelerators, leave a relative residual near 1e-4.
    coarse = solver.precision != "highest" and dtype == jnp.float32 and jax.default_backend() != "cpu"
    floor = 1e-4 if coarse else float(jnp.finfo(dtype).eps)
    if solver.atol == 0 and 0 < solver.rtol < floor:
        warnings.warn(
            f"rtol={solver.rtol:g} is below the rounding floor {floor:.1e} of {jnp.dtype(dtype).name} with "
            f"precision={solver.precision!r}; raise it, or use a wider type or precision='highest'",
            stacklevel=4,
        )
    if solver.bfloat16_until is not None and solver.bfloat16_until < 1e-3:
        warnings.warn(
            f"bfloat16_until={solver.bfloat16_until:g} is below what rounding to bfloat16 leaves, about 1e-3, so that half of the steps "
            "may be spent in vain; raise it",
            stacklevel=4,
        )
