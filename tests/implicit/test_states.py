"""The states that a solve passes on its way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import Anderson, Implicit, JacobianFree, Picard, Unrolled, fixed_point


@pytest.mark.parametrize("gradient", [Implicit(), Unrolled()], ids=["implicit", "unrolled"])
def test_states_are_those_of_shorter_solves_with_the_derivative_of_one_application(x64, matrix, normal, gradient):
    A, b = matrix(0.9), normal(3, 8)
    solver = Anderson(rtol=1e-8, max_steps=60)

    def f(z, b):
        return {"z": jnp.tanh(z["z"] @ A.T + b)}

    def run(b, budget=None, states=(), gradient=gradient):
        return fixed_point(lambda z: f(z, b), {"z": jnp.zeros((3, 8))}, solver=solver, gradient=gradient, budget=budget, states=states)

    solution = run(b, states=(0, 3, 50))
    assert len(solution.states) == 3
    np.testing.assert_allclose(solution.states[2]["z"], solution.value["z"], atol=1e-7)
    np.testing.assert_array_equal(solution.stats.steps, run(b).stats.steps)
    for mark, state in zip((0, 3), solution.states, strict=False):
        shorter = run(b, budget=mark).value
        np.testing.assert_allclose(state["z"], f(shorter, b)["z"], atol=1e-12)
        found = jax.grad(lambda b: jnp.sum(run(b, states=(mark,)).states[0]["z"] ** 3))(b)  # noqa: B023
        expected = jax.grad(lambda b: jnp.sum(f(shorter, b)["z"] ** 3))(b)  # noqa: B023
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_failed_sample_leaves_its_states_finite(normal):
    rate = jnp.array([[0.5], [1e9]])

    def loss(rate):
        f = lambda z: rate * z**3 + 0.1  # noqa: E731
        return jnp.sum(fixed_point(f, jnp.ones((2, 1)), gradient=JacobianFree(), states=(2, 6)).states[1])

    value, gradient = jax.value_and_grad(loss)(rate)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert gradient[1] == 0


@pytest.mark.parametrize("states", [(3, 2), (2, 2), (-1,)])
def test_states_must_increase(states):
    with pytest.raises(ValueError, match="in increasing order"):
        fixed_point(jnp.cos, jnp.zeros((1, 1)), states=states)


def test_states_are_looked_at_in_any_case():
    f = lambda z: 0.5 * z + 1  # noqa: E731
    solution = fixed_point(f, jnp.zeros((1, 1)), solver=Picard(check_every=4, rtol=1e-6), states=(1, 2, 5))
    # After k steps the best iterate is the one evaluated last, f applied k - 1 times to zero; the state is one application more.
    np.testing.assert_allclose(jnp.stack(solution.states).ravel(), [1.0, 1.5, 2 - 2.0**-4])
