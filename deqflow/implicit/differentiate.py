"""The derivative of a solution that somebody else has found."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

import jax
from jax import lax

from deqflow.implicit.attach import attach
from deqflow.implicit.gradient import Implicit
from deqflow.implicit.trees import as_floating, on_rows, rows

T = TypeVar("T")

_MISSING = object()


@overload
def implicit_diff(
    F: Callable[..., Any], *, gradient: Implicit = ..., batched: bool = ...
) -> Callable[[Callable[..., T]], Callable[..., T]]: ...


@overload
def implicit_diff(F: Callable[..., Any], y_star: T, *params: Any, gradient: Implicit = ..., batched: bool = ...) -> T: ...


def implicit_diff(
    F: Callable[..., Any], y_star: Any = _MISSING, *params: Any, gradient: Implicit = Implicit(), batched: bool = True
) -> Any:
    """Attach to `y_star`, from anywhere, its derivative as the solution of `F(y, *params) = 0`.

        dy = -(∂F/∂y)⁻¹ ∂F/∂params · dparams

    Without `y_star` it is a decorator: the function decorated takes `params` and returns a solution, by whatever means, such as SciPy in
    a `jax.pure_callback`, optimistix, or a loop of one's own.

    Args:
      F: the equation's left-hand side; it returns a pytree like `y`.
      y_star: a solution, a pytree of floating-point arrays; its own derivative is discarded.
      *params: what `F` depends on; its closure is differentiated as well.
      gradient: how the linear system is solved.
      batched: whether `F` is one equation per entry of the leading axis of `y_star`, or a single one.

    Returns:
      `y_star`, differentiable with respect to `params` in both modes and to any order; or a decorator. The function decorated never
      sees a derivative: those of its arguments are stopped.

    Raises:
      TypeError: if `y_star` holds anything but real floating-point arrays.
      ValueError: if `F` does not return what it takes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def root(a):
      ...     y = jnp.sqrt(jax.lax.stop_gradient(a))  # any solver
      ...     return implicit_diff(lambda y, a: y**2 - a, y, a, batched=False)
      >>> print(jax.grad(root)(9.0))
      0.16666667
      >>> import numpy as np
      >>> @implicit_diff(lambda y, a: y**2 - a, batched=False)
      ... def root(a):
      ...     return jax.pure_callback(np.sqrt, jax.ShapeDtypeStruct((), "float32"), a)
      >>> print(jax.grad(root)(9.0))
      0.16666667

    Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-López, Pedregosa and Vert, "Efficient and modular implicit differentiation", 2022.
    """
    if y_star is not _MISSING:
        return _attach(F, y_star, params, gradient, batched)

    def decorate(solve: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(solve)
        def solved(*params: Any, **options: Any) -> T:
            return _attach(F, solve(*jax.tree.map(_stopped, params), **options), params, gradient, batched)

        return solved

    return decorate


def _attach(F: Callable[..., Any], y_star: T, params: tuple[Any, ...], gradient: Implicit, batched: bool) -> T:
    y_star = as_floating(lax.stop_gradient(y_star), "y_star")
    flat, split = rows(y_star, batched)
    mapped = on_rows(lambda y: F(y, *params), y_star, batched, "the value of F")
    with jax.default_matmul_precision(gradient.precision):
        return split(attach(mapped, flat, gradient.linear.product))


def _stopped(leaf: Any) -> Any:
    return lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) else leaf
