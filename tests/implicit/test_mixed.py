"""Solving with bfloat16 products first, and finishing without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from deqflow.implicit import Anderson, Newton, Picard, Reversible, ReversibleAdjoint, Status, Unrolled, fixed_point
from deqflow.implicit.mixed import with_bfloat16_products
from deqflow.nn import conv_same
from deqflow.nn.conv import _conv_p


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
    solver = Picard(rtol=0.0, max_steps=50, bfloat16_until=1e-3)
    stats = fixed_point(lambda z: z @ jnp.eye(2) * 0.9 + 1, jnp.zeros((1, 2)), solver=solver, budget=7).stats
    assert int(stats.steps[0]) == 7
    # Of bfloat16's 256 + 1 nothing is left, where float32 knows better.
    f = lambda z: jnp.where(z @ jnp.eye(2) == 256.0, jnp.nan, 257.0)  # noqa: E731
    solution = fixed_point(f, jnp.full((1, 2), 257.0), solver=Picard(bfloat16_until=1e-2))
    assert solution.stats.status[0] == Status.CONVERGED
    np.testing.assert_array_equal(solution.value, 257.0)


def test_samples_share_neither_budget_nor_progress():
    rate = jnp.array([[0.5], [0.97]])
    solver = Picard(max_steps=40, rtol=1e-5, bfloat16_until=1e-2)
    solve = lambda rate: fixed_point(lambda z: rate * (z @ jnp.eye(1)) + 1, jnp.zeros_like(rate), solver=solver).stats  # noqa: E731
    both, alone = solve(rate), solve(rate[:1])
    assert (alone.status == Status.CONVERGED).all()
    for one, two in zip(both[:4], alone[:4], strict=True):
        np.testing.assert_array_equal(one[:1], two)
    assert int(both.steps[1]) == 40


def test_a_linear_solve_inside_stays_as_it_is(problem):
    W, x = problem
    f = lambda z: jnp.linalg.solve(jnp.eye(16) + 0.1 * W, (z @ W).T).T  # noqa: E731
    with_solve, product = with_bfloat16_products(f, x)(x), with_bfloat16_products(lambda z: z @ W, x)(x)
    np.testing.assert_allclose(with_solve, jnp.linalg.solve(jnp.eye(16) + 0.1 * W, product.T).T, rtol=1e-5, atol=1e-5)


def test_sums_of_a_convolution_are_not_rounded():
    images = jnp.array([256.0, 1.0, 0.0]).reshape(1, 1, 3, 1)
    rounded = with_bfloat16_products(lambda z: conv_same(z, jnp.ones((1, 3, 1, 1))), images)
    np.testing.assert_array_equal(rounded(images), conv_same(images, jnp.ones((1, 3, 1, 1))))
    kernel = jnp.ones((1, 3, 1, 1), jnp.bfloat16)
    f = lambda x, k: _conv_p.bind(x, k, precision=None, preferred_element_type=jnp.dtype("float32")).sum()  # noqa: E731
    dx, dk = jax.grad(f, (0, 1))(images.astype(jnp.bfloat16), kernel)
    np.testing.assert_array_equal(dx, jnp.array([2.0, 3.0, 2.0]).reshape(dx.shape))
    np.testing.assert_array_equal(dk.ravel(), jnp.array([257.0, 257.0, 1.0]).astype(jnp.bfloat16))


def test_what_it_cannot_do_is_said():
    with pytest.warns(UserWarning, match="below what rounding to bfloat16 leaves"):
        fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=Picard(bfloat16_until=1e-5))
    with pytest.raises(ValueError, match="states on the way"):
        fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=Picard(bfloat16_until=1e-2), states=(1,))


def test_gradients_of_the_steps_refuse_it():
    for gradient, kind in ((Unrolled(), Picard), (ReversibleAdjoint(), Reversible)):
        with pytest.raises(ValueError, match="bfloat16_until"):
            fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=kind(bfloat16_until=1e-2), gradient=gradient)
