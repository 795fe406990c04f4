"""A gradient that is to be taken through an equilibrium, whatever finds and differentiates it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from deqflow.implicit import Gradient, Solver, fixed_point
from deqflow.implicit.trees import as_floating

Taken = tuple[list[Array], Array, Array, Array]
"""The leaves of the gradient; of the solve the most steps of a sample, the fraction of failed samples, the mean relative residual."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A gradient to take.

    Attributes:
      arguments: the arrays that it depends on, pytrees.
      function: `function(solver, gradient)` makes a function of the arguments, to be compiled, that returns what is `Taken`.
    """

    arguments: tuple[Any, ...]
    function: Callable[[Solver, Gradient], Callable[..., Taken]]


def of_cell(cell: Callable[..., Any], z: Any, x: Any) -> Problem:
    """The gradient of a loss of the equilibrium of a cell.

        loss = <v, z>,   z = f(z, x)

    with respect to `x` and, of a Flax NNX module, its parameters; v is drawn once from a standard normal distribution.

    Args:
      cell: `cell(z, x) -> z`, or a module that has `prepare` as `deqflow.deq.Cell` does.
      z: initial guess, a pytree of arrays with a leading batch axis.
      x: input, a pytree of arrays; parameters of a cell that is a plain function are part of it. Integers in it are not differentiated.

    Example:
      >>> problem = of_cell(lambda z, x: jnp.tanh(0.5 * z + x), jnp.zeros((2, 3)), jnp.ones((2, 3)))
      >>> from deqflow.implicit import Implicit, Picard
      >>> gradient, steps, failures, residual = jax.eval_shape(problem.function(Picard(), Implicit()), *problem.arguments)
      >>> [leaf.shape for leaf in gradient]
      [(2, 3)]
    """
    is_module = isinstance(cell, nnx.Module)
    graph, params, rest = nnx.split(cell, nnx.Param, ...) if is_module else (None, {}, {})
    z = as_floating(z, "z")
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(z)))
    v = [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, jax.tree.leaves(z), strict=True)]

    def function(solver: Solver, gradient: Gradient) -> Callable[..., Taken]:
        def loss(trained: Any, rest: Any, z: Any, v: list[Array]) -> Any:
            params, x = trained
            here = nnx.merge(graph, params, rest) if graph is not None else cell
            prepare = getattr(here, "prepare", None)
            f = prepare(x, None) if prepare else lambda z: here(z, x)
            solution = fixed_point(f, z, solver=solver, gradient=gradient)
            return sum(jnp.vdot(a, b) for a, b in zip(v, jax.tree.leaves(solution.value), strict=True)), solution.stats

        def taken(*arguments: Any) -> Taken:
            gradient, stats = jax.grad(loss, has_aux=True, allow_int=True)(*arguments)
            leaves = [leaf for leaf in jax.tree.leaves(gradient) if leaf.dtype != jax.dtypes.float0]
            return leaves, jnp.max(stats.steps), jnp.mean(stats.failed), jnp.mean(stats.relative_residual)

        return taken

    return Problem(((params, x), rest, z, v), function)
