"""What every linear solver has to do; the table is in conftest.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import GMRES, BiCGStab, Dense, Neumann, Status


@pytest.mark.parametrize("radius", [0.9, 1.5])
def test_solves_one_system_per_sample(x64, linear, matrix, normal, radius):
    if isinstance(linear, Neumann) and radius > 1:
        pytest.skip("the series converges below a spectral radius of 1 only")
    A = jnp.stack([jnp.eye(6) - matrix(radius, n=6, seed=seed) for seed in range(4)])
    b = normal(4, 6)
    x, stats = dataclasses.replace(linear, rtol=1e-12).solve(lambda v: jnp.einsum("bij,bj->bi", A, v), b)
    np.testing.assert_allclose(x, np.linalg.solve(A, b[..., None])[..., 0], rtol=1e-8)
    assert stats.converged.all()
    assert (stats.relative_residual <= 1e-12).all()
    np.testing.assert_allclose(stats.residual, np.linalg.norm(b - jnp.einsum("bij,bj->bi", A, x), axis=1), atol=1e-12)


def test_gmres_keeps_its_basis_orthogonal_in_float32():
    n = 24
    orthogonal = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    A = jnp.asarray(np.eye(n) - 0.98 * orthogonal, jnp.float32)
    b = jnp.ones((1, n), jnp.float32)
    x, stats = GMRES(restart=n, rtol=1e-5).solve(lambda v: v @ A.T, b)
    assert stats.converged.all()
    assert stats.steps[0] <= n
    assert np.linalg.norm(b - x @ A.T) <= 2e-5 * np.linalg.norm(b)


def test_pytrees_and_unbatched_systems(linear, normal):
    A = jnp.eye(6) + 0.1 * normal(6, 6).astype(jnp.float32)
    b = (jnp.arange(4.0).reshape(2, 2), jnp.ones(2))

    def matvec(v):
        y = A @ jnp.concatenate([v[0].ravel(), v[1]])
        return y[:4].reshape(2, 2), y[4:]

    x, stats = linear.solve(matvec, b, batched=False)
    assert stats.status.shape == ()
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, atol=1e-4), matvec(x), b)


def test_a_zero_right_hand_side_gives_exact_zero_whatever_the_matrix(linear):
    A = jnp.stack([jnp.eye(3) * 0.5, jnp.full((3, 3), jnp.nan), jnp.zeros((3, 3))])
    x, stats = linear.solve(lambda v: jnp.einsum("bij,bj->bi", A, v), jnp.array([[1.0, 2.0, 3.0], [0, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(x[0], [2.0, 4.0, 6.0], rtol=1e-5)
    np.testing.assert_array_equal(x[1:], 0)
    assert (stats.status == Status.CONVERGED).all()


def test_singular_and_non_finite_systems_say_so_and_stay_finite(linear):
    A = jnp.stack([jnp.diag(jnp.array([1.0, 0.0])), jnp.full((2, 2), jnp.nan), jnp.array([[0.0, 1.0], [1.0, 0.0]])])
    x, stats = linear.solve(lambda v: jnp.einsum("bij,bj->bi", A, v), jnp.ones((3, 2)))
    assert np.isfinite(x).all()
    assert not stats.converged[0]
    assert not stats.converged[1]
    np.testing.assert_allclose(x[2], 1.0, rtol=1e-5)


def test_samples_are_independent_bitwise(linear, matrix, normal):
    A = jnp.stack([jnp.eye(8) - matrix(0.95, seed=seed) for seed in range(3)]).astype(jnp.float32)
    b = normal(3, 8).astype(jnp.float32)
    solve = jax.jit(lambda A, b: linear.solve(lambda v: jnp.einsum("bij,bj->bi", A, v), b))
    first, second = solve(A, b), solve(A.at[1:].multiply(3.0), b.at[2].set(0.0))
    np.testing.assert_array_equal(first.value[0], second.value[0])
    assert first.stats.steps[0] == second.stats.steps[0]


def test_a_step_limit_is_reported(linear, matrix, normal):
    if isinstance(linear, Dense):
        pytest.skip("it takes no steps")
    A = jnp.eye(8) - matrix(0.99)
    stats = dataclasses.replace(linear, max_steps=2).solve(lambda v: v @ A.T, normal(2, 8).astype(A.dtype)).stats
    assert (stats.status == Status.STEP_LIMIT).all()
    assert (stats.evaluations == (3 if isinstance(linear, BiCGStab) else 2)).all()  # one to confirm the residual
    assert (stats.relative_residual <= 1).all()


def test_the_series_says_so_where_it_does_not_converge(matrix, normal):
    A = jnp.eye(8) - matrix(1.5)
    x, stats = Neumann(max_steps=500).solve(lambda v: v @ A.T, normal(2, 8).astype(A.dtype))
    assert stats.failed.all()
    assert np.isfinite(x).all()


def test_dense_refuses_what_is_too_large():
    with pytest.raises(ValueError, match=r"9 x 9 numbers per sample, more than max_size=8; use GMRES"):
        Dense(max_size=8).solve(lambda v: v, jnp.ones((2, 9)))


def test_bicgstab_reports_the_true_residual(matrix, normal):
    """In float32 its own recursion is off by more than a hundred times the tolerance here."""
    A = jnp.stack([jnp.eye(64) - matrix(0.9, n=64, seed=seed) for seed in range(32)]).astype(jnp.float32)
    b = normal(32, 64).astype(jnp.float32)
    x, stats = BiCGStab(rtol=1e-6, max_steps=300).solve(lambda v: jnp.einsum("bij,bj->bi", A, v, precision="highest"), b)
    true = np.linalg.norm(b - np.einsum("bij,bj->bi", np.asarray(A, np.float64), x), axis=1) / np.linalg.norm(b, axis=1)
    assert stats.converged.all()
    assert (true <= 1.2e-6).all()
    np.testing.assert_allclose(stats.relative_residual, true, rtol=0.3)


def test_a_tolerance_per_row_replaces_the_others(linear, matrix, normal):
    A, b = jnp.eye(8) - matrix(0.9).astype(jnp.float32), normal(2, 8).astype(jnp.float32)
    _, stats = linear.solve_rows(lambda v: v @ A.T, b, tolerance=jnp.array([1e-4, 100.0]))
    assert stats.converged.all()
    assert stats.residual[0] <= 1e-4
    assert stats.evaluations[1] == (8 if isinstance(linear, Dense) else 0)


def test_gmres_needs_no_more_products_than_dimensions(x64, matrix, normal):
    A = jnp.eye(8) - matrix(1.5)
    stats = GMRES(rtol=1e-10).solve(lambda v: v @ A.T, normal(5, 8)).stats
    assert (stats.evaluations <= 8).all()


def test_the_matrix_must_return_what_it_takes(linear):
    with pytest.raises(ValueError, match="matvec"):
        linear.solve(lambda v: v[:, :1], jnp.ones((2, 3)))
