"""Solving with the products in bfloat16 first, and finishing in the type of the state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from deqflow.implicit import loop
from deqflow.implicit.solver import Solver
from deqflow.implicit.trees import Map, Vectors, select

# By name, as deqflow.nn has a primitive of its own, which this package does not import.
_PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "conv_same"})


def solve_in_two(solver: Solver, until: float, f: Map, z0: Vectors, request: loop.Request, *, keep: bool) -> loop.Solved:
    """`loop.solve` from where a solve of `with_bfloat16_products(f)` to the relative tolerance `until` has led.

    The first may spend half of the budget, and what a sample leaves of it is for its second; the statistics count both, and the trace is of
    the second. A sample that fails in the first starts anew.

    Raises:
      ValueError: if states on the way are asked for: the second begins near its end.
    """
    if request.states:
        raise ValueError("states on the way are those of one solve, and with bfloat16_until there are two; leave one of them out")
    rough = dataclasses.replace(solver, rtol=until, atol=0.0)
    first = loop.solve(rough, with_bfloat16_products(f, z0), z0, loop.Request(request.limit(solver) // 2))
    begin = select(first.stats.failed, z0, first.value)
    second = loop.solve(solver, f, begin, request._replace(spent=first.stats.steps), keep=keep)
    stats = second.stats._replace(
        steps=first.stats.steps + second.stats.steps, evaluations=first.stats.evaluations + second.stats.evaluations
    )
    return second._replace(stats=stats)


def with_bfloat16_products(f: Map, z: Vectors) -> Map:
    """`f` with the operands of its matrix products and convolutions rounded to bfloat16; sums and everything else stay as they are."""
    closed = _rounded(jax.make_jaxpr(f)(z))

    def rounded(z: Vectors) -> Vectors:
        (out,) = jaxpr_as_fun(closed)(z)
        return out

    return rounded


def _rounded(program: Any) -> Any:
    """A program with its products rounded, also those inside of loops, branches and calls; what is no program as it is.

    Nor is a linear solve changed, whose programs come in a tuple of JAX's own: it would be no solve of the rounded matrix.
    """
    if type(program) is tuple and program and all(isinstance(branch, ClosedJaxpr) for branch in program):
        return tuple(map(_rounded, program))
    if isinstance(program, Jaxpr) and not isinstance(program, ClosedJaxpr):
        return _rounded(ClosedJaxpr(program, ())).jaxpr
    if not isinstance(program, ClosedJaxpr):
        return program

    def run(*arguments: Any) -> list[Any]:
        jaxpr = program.jaxpr
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *arguments], strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            inputs, parameters = [read(atom) for atom in equation.invars], dict(equation.params)
            if product := equation.primitive.name in _PRODUCTS:
                inputs = [a.astype(jnp.bfloat16) if a.dtype in (jnp.float32, jnp.float64) else a for a in inputs]
                if "preferred_element_type" in parameters:
                    parameters["preferred_element_type"] = equation.outvars[0].aval.dtype
            else:
                parameters = {name: _rounded(value) for name, value in parameters.items()}
            with equation.ctx.manager:
                outputs = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(parameters))
            outputs = outputs if equation.primitive.multiple_results else [outputs]
            if product:
                outputs = [a.astype(variable.aval.dtype) for a, variable in zip(outputs, equation.outvars, strict=True)]
            values |= zip(equation.outvars, outputs, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    arguments: list[Any] = program.in_avals
    like = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type, sharding=a.sharding) for a in arguments]
    return jax.make_jaxpr(run)(*like)
