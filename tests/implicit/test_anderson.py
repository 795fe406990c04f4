import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import Anderson, fixed_point


def problems(radius, n=64):
    """Ten Gaussian matrices scaled to a spectral radius, with their right-hand sides."""
    A, b = [], []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        a = generator.standard_normal((n, n))
        A.append(a * radius / np.abs(np.linalg.eigvals(a)).max())
        b.append(generator.standard_normal(n))
    return jnp.asarray(np.stack(A)), jnp.asarray(np.stack(b))


# Median evaluations to an absolute residual of 1e-6 over ten seeds.
EVALUATIONS = [
    (5, 0.9, False, 78),
    (5, 0.99, False, 160),
    (5, 0.9, True, 24),
    (20, 0.9, False, 49),
    (20, 0.99, False, 63),
    (20, 0.9, True, 23),
]


@pytest.mark.parametrize(("history", "radius", "tanh", "most"), EVALUATIONS)
def test_evaluations(x64, history, radius, tanh, most):
    A, b = problems(radius)

    def f(z):
        y = jnp.einsum("bij,bj->bi", A, z) + b
        return jnp.tanh(y) if tanh else y

    solver = Anderson(history=history, atol=1e-6, rtol=0.0, max_steps=1000)
    value, stats = jax.jit(lambda z0: fixed_point(f, z0, solver=solver))(jnp.zeros_like(b))
    assert stats.converged.all()
    assert (np.linalg.norm(f(value) - value, axis=1) <= 1.01e-6).all()
    assert np.median(stats.evaluations) <= most


def test_solves_where_plain_iteration_diverges(x64):
    A, b = problems(1.5, n=12)
    f = lambda z: jnp.einsum("bij,bj->bi", A, z) + b  # noqa: E731
    value = fixed_point(f, jnp.zeros_like(b), solver=Anderson(history=12, rtol=1e-10, max_steps=200)).check()
    np.testing.assert_allclose(value, np.linalg.solve(np.eye(12) - A, b[..., None])[..., 0], rtol=1e-7)


def test_a_full_history_solves_a_linear_problem_in_n_plus_two_evaluations(x64):
    A, b = problems(0.99, n=6)
    f = lambda z: jnp.einsum("bij,bj->bi", A, z) + b  # noqa: E731
    stats = fixed_point(f, jnp.zeros_like(b), solver=Anderson(history=6, rtol=1e-8)).stats
    assert (stats.steps <= 6 + 2).all()


def test_half_precision_states_converge_to_their_floor():
    b = jnp.linspace(-1, 1, 16, dtype=jnp.bfloat16).reshape(2, 8)
    value, stats = fixed_point(lambda z: jnp.tanh(0.5 * z + b), jnp.zeros_like(b), solver=Anderson(rtol=1e-2))
    assert value.dtype == jnp.bfloat16
    assert stats.residual.dtype == jnp.float32
    assert stats.converged.all()
