"""Solving with bfloat16 products first, and finishing without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deqflow.implicit import Anderson, Newton, Picard, Reversible, ReversibleAdjoint, Status, Unrolled, fixed_point
from deqflow.implicit.mixed import with_bfloat16_products
from deqflow.nn import conv_same


@pytest.fixture
def problem(normal):
    W = jnp.asarray(0.9 * np.linalg.qr(normal(16, 16))[0], jnp.float32)
    return W, normal(3, 16, seed=2).astype(jnp.float32)


def dtypes(jaxpr):
    """The operand types of every product, wherever it stands."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_same"):
            found.append({str(atom.aval.dtype) for atom in equation.invars})
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                found += dtypes(getattr(inner, "jaxpr", inner))
    return found


def test_every_product_is_rounded_and_nothing_else(problem):
    W, x = problem
    kernel = jnp.ones((3, 3, 4, 4)) / 36

    @jax.checkpoint
    def inner(z):
        return jnp.tanh(z @ W + x)

    def f(z):
        z, _ = lax.scan(lambda z, _: (jax.nn.relu(inner(z)), None), z, length=2)
        z = lax.cond(z[0, 0] > 9, lambda z: z, lambda z: jax.jit(inner)(z), z)
        return conv_same(z.reshape(3, 2, 2, 4), kernel).reshape(z.shape)

    rounded = with_bfloat16_products(f, x)
    found = dtypes(jax.make_jaxpr(rounded)(x).jaxpr)
    assert len(found) == 3
    assert all(kinds == {"bfloat16"} for kinds in found)
    error = np.abs(rounded(x) - f(x)).max()
    assert 1e-5 < error < 2e-2
    # Without a product nothing changes.
    np.testing.assert_array_equal(with_bfloat16_products(jnp.cos, x)(x), jnp.cos(x))


@pytest.mark.parametrize("solver", [Picard, Anderson, Newton])
def test_the_solution_is_that_of_the_function_itself(problem, solver):
    W, x = problem

    def loss(W, until):
        solution = fixed_point(lambda z: jnp.tanh(z @ W + x), jnp.zeros_like(x), solver=solver(rtol=1e-5, bfloat16_until=until))
        return jnp.sum(solution.value**3), solution

    (_, plain), gradient = jax.jit(jax.value_and_grad(lambda W: loss(W, None), has_aux=True))(W)
    (_, mixed), gradient_mixed = jax.jit(jax.value_and_grad(lambda W: loss(W, 1e-2), has_aux=True))(W)
    assert (mixed.stats.status == Status.CONVERGED).all()
    np.testing.assert_allclose(mixed.stats.relative_residual, 0, atol=1e-5)
    np.testing.assert_allclose(mixed.value, plain.value, atol=1e-4)
    np.testing.assert_allclose(gradient_mixed, gradient, atol=1e-3 * np.abs(gradient).max())
    # The rough solve spares the other nearly all that it costs.
    assert (mixed.stats.evaluations <= plain.stats.evaluations + 10).all()


def test_both_share_the_budget_and_a_failure_starts_anew():
    solver = Picard(rtol=0.0, max_steps=50, bfloat16_until=1e-12)
    stats = fixed_point(lambda z: z @ jnp.eye(2) * 0.9 + 1, jnp.zeros((1, 2)), solver=solver, budget=7).stats
    assert int(stats.steps[0]) == 7
    # Of bfloat16's 256 + 1 nothing is left, where float32 knows better.
    f = lambda z: jnp.where(z @ jnp.eye(2) == 256.0, jnp.nan, 257.0)  # noqa: E731
    solution = fixed_point(f, jnp.full((1, 2), 257.0), solver=Picard(bfloat16_until=1e-2))
    assert solution.stats.status[0] == Status.CONVERGED
    np.testing.assert_array_equal(solution.value, 257.0)


def test_gradients_of_the_steps_refuse_it():
    for gradient, kind in ((Unrolled(), Picard), (ReversibleAdjoint(), Reversible)):
        with pytest.raises(ValueError, match="bfloat16_until"):
            fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=kind(bfloat16_until=1e-2), gradient=gradient)
