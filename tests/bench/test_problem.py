import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from deqflow.bench import of_cell
from deqflow.deq import ConvCell
from deqflow.implicit import Implicit, Picard

SOLVER = Picard(rtol=0.0, max_steps=60)


def taken(problem):
    return jax.jit(problem.function(SOLVER, Implicit()))(*problem.arguments)


class Cell(nnx.Module):
    def __init__(self, *, rngs):
        self.recurrent = nnx.Linear(3, 3, kernel_init=nnx.initializers.normal(0.2), param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, z, x):
        return {"a": jnp.tanh(self.recurrent(z["b"]) + x["u"][x["which"]]), "b": 0.5 * z["a"]}


def test_modules_pytrees_and_integers(x64):
    """Several parts, parameters of a module, and an integer that is not differentiated; against finite differences."""
    cell = Cell(rngs=nnx.Rngs(0))
    z = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 3))}
    x = {"u": jnp.asarray(np.random.default_rng(0).standard_normal((3, 3))), "which": jnp.array([2, 0])}
    problem = of_cell(cell, z, x)
    gradient, _, _, residual = taken(problem)
    assert residual < 1e-12
    assert [leaf.shape for leaf in gradient] == [(3,), (3, 3), (3, 3)]  # bias, kernel, u
    z, v = problem.arguments[2:]

    @jax.jit
    def loss(u):
        state = lax.fori_loop(0, 60, lambda _, state: cell(state, {**x, "u": u}), z)
        return sum(jnp.vdot(a, b) for a, b in zip(v, jax.tree.leaves(state), strict=True))

    at = jnp.zeros((3, 3)).at[2, 1].set(1e-5)
    np.testing.assert_allclose(gradient[2][2, 1], (loss(x["u"] + at) - loss(x["u"] - at)) / 2e-5, rtol=1e-6)
    np.testing.assert_array_equal(gradient[2][1], 0)  # the row that nobody reads


def test_cells_that_prepare():
    x = jnp.ones((1, 4, 4, 4))
    problem = of_cell(ConvCell(4, groups=2, rngs=nnx.Rngs(0)), jnp.zeros_like(x), x)
    shapes = jax.eval_shape(problem.function(SOLVER, Implicit()), *problem.arguments)[0]
    assert len(shapes) == 2 + 4 + 1  # two kernels, two normalisations with scale and shift, x
