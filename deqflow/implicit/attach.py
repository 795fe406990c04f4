"""Give a solution the derivative that the implicit function theorem assigns to it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import eval_jaxpr
from jaxtyping import Array, Bool

from deqflow.implicit.trees import Map, Vectors, select

LinearSolve = Callable[[Map, Vectors], Vectors]
"""`solve(matvec, b)`: an approximate or exact solution of `matvec(x) = b`."""


def attach(F: Map, y: Vectors, solve: LinearSolve, transpose_solve: LinearSolve | None = None) -> Vectors:
    """Return `y` unchanged, with the derivative of the solution of `F(y) = 0` with respect to all that `F` closes over.

        dy = -(∂F/∂y)⁻¹ ∂F

    It does not matter who found `y`. Forward and reverse mode, to any order: the tangent system goes through
    `custom_linear_solve`, so reverse mode solves the transposed system once.

    Args:
      F: the equation's left-hand side, treating every row by itself.
      y: its solution.
      solve: how `∂F/∂y x = b` is solved.
      transpose_solve: how the transposed system is solved; like the other, if it is not given.
    """

    def tangent(matvec: Map, b: Vectors) -> Vectors:
        return lax.custom_linear_solve(matvec, b, solve, transpose_solve=transpose_solve or solve)

    return lax.custom_root(F, y, lambda _, y: y, tangent)


def detach(failed: Bool[Array, " batch"], z: Vectors, attached: Callable[[Vectors], Vectors]) -> Vectors:
    """`attached(z)` with failed rows cut off: they are linearised at a finite point, and contribute exactly zero to every gradient.

    Masking the loss alone would leave 0 · NaN in the backward pass.
    """
    z = jnp.where(jnp.isfinite(z), z, 0)
    return select(failed, z, attached(z))


def freeze(f: Map, z: Vectors) -> Map:
    """`f` with everything it closes over held constant: traced once, so that a loop over it is never differentiated."""
    # jax.closure_convert would do, but it keeps every function and array it meets outside of jit alive in a cache.
    closed = jax.make_jaxpr(f)(z)
    constants = lax.stop_gradient(closed.consts)

    def frozen(z: Vectors) -> Vectors:
        (out,) = eval_jaxpr(closed.jaxpr, constants, z)
        return out

    return frozen
