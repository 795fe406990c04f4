"""Give a solution the derivative that the implicit function theorem assigns to it."""

import jax
from jax import lax
from jax.core import eval_jaxpr

from deqflow.implicit.linear import LinearSolver
from deqflow.implicit.trees import Map, Vectors


def attach(F: Map, y: Vectors, linear: LinearSolver) -> Vectors:
    """Return `y` unchanged, with the derivative of the solution of `F(y) = 0` with respect to all that `F` closes over.

        dy = -(∂F/∂y)⁻¹ ∂F

    It does not matter who found `y`. Forward and reverse mode, to any order: the tangent system goes through
    `custom_linear_solve`, so reverse mode solves the transposed system once.
    """

    def solve(matvec: Map, b: Vectors) -> Vectors:
        return linear.solve_rows(matvec, b)[0]

    def tangent(matvec: Map, b: Vectors) -> Vectors:
        return lax.custom_linear_solve(matvec, b, solve, transpose_solve=solve)

    return lax.custom_root(F, y, lambda _, y: y, tangent)


def freeze(f: Map, z: Vectors) -> Map:
    """`f` with everything it closes over held constant: traced once, so that a loop over it is never differentiated."""
    # jax.closure_convert would do, but it keeps every function and array it meets outside of jit alive in a cache.
    closed = jax.make_jaxpr(f)(z)
    constants = lax.stop_gradient(closed.consts)

    def frozen(z: Vectors) -> Vectors:
        (out,) = eval_jaxpr(closed.jaxpr, constants, z)
        return out

    return frozen
