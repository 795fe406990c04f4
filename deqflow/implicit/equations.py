"""The equations one can solve."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from deqflow.implicit.anderson import Anderson
from deqflow.implicit.attach import attach
from deqflow.implicit.gradient import Gradient, Implicit
from deqflow.implicit.solution import Solution
from deqflow.implicit.solver import Solver
from deqflow.implicit.trees import as_floating, on_rows, rows

T = TypeVar("T")


def fixed_point(
    f: Callable[[T], T],
    z0: T,
    *,
    solver: Solver = Anderson(),
    gradient: Gradient = Implicit(),
    batched: bool = True,
    budget: Int[Array, ""] | int | None = None,
    trace: bool = False,
) -> Solution[T]:
    """Solve `z = f(z)` and differentiate the solution with respect to all that `f` closes over.

        ‖f(z) - z‖₂ <= atol + rtol ‖f(z)‖₂   per sample

    The derivative with respect to `z0` is zero. Samples are independent: with `batched`, neither the value nor the number of steps nor
    the gradient of a sample depends on the others. Outside of `jit` every call compiles anew.

    Args:
      f: a function from pytrees like `z0` to the same structure, shapes and dtypes; it may close over anything, traced or not. With
        `batched` it must treat every sample by itself.
      z0: initial guess, a pytree of floating-point arrays; with `batched` every leaf has a leading batch axis.
      solver: how to solve.
      gradient: how to differentiate.
      batched: whether there is one equation per entry of the leading axis, or a single one.
      budget: at most this many steps; may be traced, so that changing it does not recompile. `solver.max_steps` caps it.
      trace: whether `stats.trace` shall hold the relative residual after every step.

    Returns:
      A `Solution` whose `value` is the best iterate and whose `stats` say, per sample, how the solve ended. A failed sample (diverged or
      non-finite) has a finite placeholder for a value and contributes exactly zero to every gradient.

    Raises:
      TypeError: if `z0` holds anything but real floating-point arrays.
      ValueError: if `f` does not return what it takes, or the leaves have no common batch axis.

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
    flat, split = rows(z0, batched)
    _warn_below_floor(solver, flat.dtype)
    value, stats = gradient.solve(solver, on_rows(f, z0, batched, "the value of f"), flat, budget=budget, trace=trace)
    return Solution(split(value), stats if batched else stats.single())


def implicit_diff(F: Callable[[T, Any], T], y_star: T, params: Any, *, gradient: Implicit = Implicit(), batched: bool = True) -> T:
    """Attach to `y_star`, from anywhere, its derivative as the solution of `F(y, params) = 0`.

        dy = -(∂F/∂y)⁻¹ ∂F/∂params · dparams

    Args:
      F: the equation's left-hand side; it returns a pytree like `y`.
      y_star: a solution, a pytree of floating-point arrays; its own derivative is discarded.
      params: what `F` depends on; its closure is differentiated as well.
      gradient: how the linear system is solved.
      batched: whether `F` is one equation per entry of the leading axis of `y_star`, or a single one.

    Returns:
      `y_star`, differentiable with respect to `params`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def root(a):
      ...     y = jnp.sqrt(jax.lax.stop_gradient(a))  # any solver
      ...     return implicit_diff(lambda y, a: y**2 - a, y, a, batched=False)
      >>> print(jax.grad(root)(9.0))
      0.16666667
    """
    y_star = as_floating(lax.stop_gradient(y_star), "y_star")
    flat, split = rows(y_star, batched)
    mapped = on_rows(lambda y: F(y, params), y_star, batched, "the value of F")
    with jax.default_matmul_precision(gradient.precision):
        return split(attach(mapped, flat, gradient.linear))


def _warn_below_floor(solver: Solver, dtype: Any) -> None:
    """Warn where rounding alone keeps the residual above the tolerance."""
    # TF32 and bfloat16 products, the default on accelerators, leave a relative residual near 1e-4.
    coarse = solver.precision != "highest" and dtype == jnp.float32 and jax.default_backend() != "cpu"
    floor = 1e-4 if coarse else float(jnp.finfo(dtype).eps)
    if solver.atol == 0 and 0 < solver.rtol < floor:
        warnings.warn(
            f"rtol={solver.rtol:g} is below the rounding floor {floor:.1e} of {jnp.dtype(dtype).name} with "
            f"precision={solver.precision!r}; raise it, or use a wider type or precision='highest'",
            stacklevel=3,
        )
