import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import Continuous

MATRIX = jnp.array([[0.3, -1.0, 0.2], [0.8, -0.2, 0.0], [0.5, 0.1, 0.7]])
X = jax.random.normal(jax.random.key(0), (4, 3))


class Linear(nnx.Module):
    """`v = A x`, whose flow is a matrix exponential."""

    def __init__(self, matrix=MATRIX):
        self.matrix = nnx.Param(matrix)

    def __call__(self, t, x):
        return x @ self.matrix[...].T


class Sum(nnx.Module):
    """`v = tanh(x + 3 t) + c`, with a condition."""

    def __call__(self, t, x, *, condition):
        return jnp.tanh(x + 3 * t) + condition


class Stiff(nnx.Module):
    """`v = -rate x` at a rate that the second dimension holds."""

    def __call__(self, t, x):
        return jnp.stack([-x[:, 1] * x[:, 0], 0 * x[:, 1]], axis=1)


def test_linear_field_against_the_matrix_exponential():
    time = 0.3
    flow = Continuous(Linear(), (3,), time=time)
    z, log_det, report = flow.forward_and_log_det(X)
    np.testing.assert_allclose(z, X @ jax.scipy.linalg.expm(time * MATRIX).T, atol=1e-4)
    np.testing.assert_allclose(log_det, np.full(4, time * jnp.trace(MATRIX)), atol=1e-4)
    assert not report["failed"].any()
    assert (report["steps"] > 0).all()
    back, inverse_log_det, _ = flow.inverse_and_log_det(z)
    np.testing.assert_allclose(back, X, atol=1e-3)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-4)


def test_the_field_sees_the_time_and_the_condition():
    condition = jnp.array([[0.0], [1.0]])
    flow = Continuous(Sum(), (1,), max_steps=100)
    z = flow.forward_and_log_det(jnp.zeros((2, 1)), condition=condition).value
    state, steps = jnp.zeros((2, 1)), 4000
    for_t = jax.jit(lambda i, state: state + Sum()((i + 0.5) / steps, state, condition=condition) / steps)
    np.testing.assert_allclose(z, jax.lax.fori_loop(0, steps, for_t, state), atol=1e-3)
    back = flow.inverse_and_log_det(z, condition=condition).value
    np.testing.assert_allclose(back, jnp.zeros((2, 1)), atol=1e-3)
    z, log_det, report = flow.forward_and_log_det(jnp.zeros((2, 1)), condition=condition.at[0].set(jnp.nan))
    np.testing.assert_array_equal(np.isnan(log_det), [True, False])
    np.testing.assert_array_equal(report["failed"], [True, False])


def test_estimated_trace_is_right_on_average_and_knows_its_error():
    flow = Continuous(Linear(), (3,), probes=20)
    x = jnp.zeros((300, 3))
    key = jax.random.key(1)
    z, log_det, report = flow.forward_and_log_det(x, key=key)
    error = log_det - jnp.trace(MATRIX)
    assert len(np.unique(log_det)) > 20  # every sample has probes of its own
    np.testing.assert_allclose(log_det.mean(), jnp.trace(MATRIX), atol=5 * error.std() / np.sqrt(300))
    np.testing.assert_allclose(np.sqrt((report["standard_error"] ** 2).mean()), error.std(), rtol=0.2)
    np.testing.assert_allclose(flow.inverse_and_log_det(z, key=key).log_det, -log_det, atol=1e-3)
    np.testing.assert_array_equal(flow.forward_and_log_det(x, key=key).log_det, log_det)


def test_one_probe_is_exact_for_a_diagonal_jacobian():
    flow = Continuous(Linear(jnp.diag(jnp.array([0.1, 0.2, -0.5]))), (3,), probes=1)
    _, log_det, report = flow.forward_and_log_det(X, key=jax.random.key(0))
    np.testing.assert_allclose(log_det, np.full(4, -0.2), atol=1e-5)
    assert "standard_error" not in report


def test_solve_that_fails_is_reported_and_touches_no_other():
    flow = Continuous(Stiff(), (2,), max_steps=30)
    x = jnp.array([[1.0, 0.5], [1.0, 3e3], [jnp.inf, 1.0], [1.0, -0.5]])
    z, log_det, report = flow.forward_and_log_det(x)
    np.testing.assert_array_equal(report["failed"], [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(z).all(1), report["failed"])
    np.testing.assert_array_equal(np.isnan(log_det), report["failed"])
    np.testing.assert_allclose(z[jnp.array([0, 3]), 0], np.exp([-0.5, 0.5]), rtol=1e-4)


class Explosion(nnx.Module):
    """`v = exp(a x²)`, which overflows on the way, and at large x from the start."""

    def __init__(self):
        self.a = nnx.Param(jnp.array(0.1))

    def __call__(self, t, x):
        return jnp.exp(self.a[...] * x * x)


def test_overflow_contributes_nothing_to_the_gradient():
    def loss(field, x):
        z, log_det, report = Continuous(field, (1,), max_steps=100).forward_and_log_det(x)
        return jnp.where(report["failed"], 0, z.sum(1) + log_det).sum(), report["failed"]

    slope = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (with_failures, x_slope), failed = slope(Explosion(), jnp.array([[0.3], [8.0], [40.0], [-0.7]]))
    np.testing.assert_array_equal(failed, [False, True, True, False])
    np.testing.assert_array_equal(x_slope[1:3], np.zeros((2, 1)))
    (without, others), failed = slope(Explosion(), jnp.array([[0.3], [0.3], [-0.7], [-0.7]]))
    assert not failed.any()
    np.testing.assert_allclose(x_slope[jnp.array([0, 3])], others[1:3], rtol=1e-5)
    np.testing.assert_allclose(with_failures.a[...], without.a[...] / 2, rtol=1e-5)


def test_steps_of_a_sample_do_not_depend_on_its_neighbours():
    flow = Continuous(Stiff(), (2,))
    easy, hard = jnp.array([1.0, 0.5]), jnp.array([1.0, 40.0])
    first, second = (flow.forward_and_log_det(jnp.stack(rows)) for rows in ([easy, easy], [easy, hard]))
    assert second.diagnostics["steps"][1] > second.diagnostics["steps"][0]
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("adjoint", [None, diffrax.BacksolveAdjoint()], ids=["checkpoints", "backsolve"])
def test_gradient_of_every_adjoint_is_that_of_the_matrix_exponential(adjoint):
    def ours(matrix):
        flow = Continuous(Linear(matrix), (3,), adjoint=adjoint, max_steps=64)
        z, log_det, _ = flow.forward_and_log_det(X)
        return (z**2).sum() + log_det.sum()

    def theirs(matrix):
        return ((X @ jax.scipy.linalg.expm(matrix).T) ** 2).sum() + len(X) * jnp.trace(matrix)

    expected = jax.grad(theirs)(MATRIX)
    np.testing.assert_allclose(jax.grad(ours)(MATRIX), expected, rtol=1e-2, atol=1e-2)


def test_tolerances_and_solver_are_the_users():
    z = Continuous(Linear(), (3,), rtol=1e-2, atol=1e-2, solver=diffrax.Heun()).forward_and_log_det(X).value
    error = np.abs(z - X @ jax.scipy.linalg.expm(MATRIX).T).max()
    assert 1e-3 < error < 0.1  # of second order, and loose


class Narrow(nnx.Module):
    def __call__(self, t, x):
        return x[:, :1]


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="pass key="):
        Continuous(Linear(), (3,), probes=1).forward_and_log_det(X)
    with pytest.raises(ValueError, match=r"must return the shape of its states, \(1, 3\), got \(1, 1\)"):
        Continuous(Narrow(), (3,)).forward_and_log_det(X)
    with pytest.raises(ValueError, match="time must be > 0"):
        Continuous(Linear(), (3,), time=0.0)
    with pytest.raises(ValueError, match="probes must be >= 1"):
        Continuous(Linear(), (3,), probes=0)
    with pytest.raises(ValueError, match="rtol must be > 0"):
        Continuous(Linear(), (3,), rtol=0.0)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"pip install 'deqflow\[flows\]'"):
        Continuous(Linear(), (3,)).forward_and_log_det(X)
