"""The spectra behind a diagnosis, dense and estimated, against dense linear algebra in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import GMRES, Implicit, JacobianFree, Newton, Status, fixed_point
from deqflow.implicit.diagnose import diagnose

KEY = jax.random.key(3)
TIGHT = Implicit(linear=GMRES(rtol=1e-13, restart=40, max_steps=400))


def linear(A, b):
    """The map `z -> A z + b` with a matrix per sample, whose Jacobian is A everywhere."""
    return lambda z: jnp.einsum("bij,bj->bi", A, z) + b


def zoo(n):
    """Gaussian matrices of spectral radius 0.9 and 1.5, a symmetric, a nilpotent, a scaled orthogonal and a nearly singular one."""
    rng = np.random.default_rng(0)
    gauss = lambda: rng.standard_normal((n, n))  # noqa: E731
    scaled = lambda A, radius: A * radius / np.abs(np.linalg.eigvals(A)).max()  # noqa: E731
    Q = np.linalg.qr(gauss())[0]
    S = gauss()
    nilpotent = Q @ np.diag(np.linspace(1, 3, n - 1), 1) @ Q.T
    singular = scaled(gauss(), 0.9)
    u, s, v = np.linalg.svd(np.eye(n) - singular)
    singular = np.eye(n) - (u * np.append(s[:-1], 1e-9)) @ v
    orthogonal = 0.9 * np.linalg.qr(gauss())[0]
    return jnp.asarray(np.stack([scaled(gauss(), 0.9), scaled(gauss(), 1.5), scaled(S + S.T, 0.8), nilpotent, orthogonal, singular]))


GAUSS, EXPANDING, SYMMETRIC, NILPOTENT, ORTHOGONAL, SINGULAR = range(6)


def truth(A):
    """Spectral radius, ‖J‖₂, and the smallest and largest singular value of I - J."""
    A = np.asarray(A)
    s = np.linalg.svd(np.eye(A.shape[1]) - A)[1]
    return np.abs(np.linalg.eigvals(A)).max(axis=1), np.linalg.norm(A, 2, axis=(1, 2)), s[:, -1], s[:, 0]


@pytest.fixture(scope="module")
def exactly():
    with jax.enable_x64(True):
        A, b = zoo(12), jnp.asarray(np.random.default_rng(1).standard_normal((6, 12)))
        solver = Newton(rtol=1e-7, linear=GMRES(restart=12, rtol=1e-14))
        return A, b, diagnose(linear(A, b), jnp.zeros((6, 12)), solver=solver, gradient=TIGHT, key=KEY)


@pytest.fixture(scope="module")
def estimated():
    with jax.enable_x64(True):
        A, b = zoo(40), jnp.asarray(np.random.default_rng(1).standard_normal((6, 40)))
        f = linear(A, b)
        return A, diagnose(f, jnp.zeros((6, 40)), solver=Newton(rtol=1e-7, max_steps=5), gradient=JacobianFree(), key=KEY, steps=20)


def test_small_states_are_diagnosed_exactly(exactly):
    A, _, d = exactly
    radius, norm, smallest, largest = truth(A)
    assert d.exact
    others = [GAUSS, EXPANDING, SYMMETRIC, ORTHOGONAL, SINGULAR]
    np.testing.assert_allclose(d.spectral_radius[others], radius[others], rtol=1e-9)
    np.testing.assert_allclose(d.spectral_radius[ORTHOGONAL], 0.9, rtol=1e-12)
    assert d.spectral_radius[NILPOTENT] < 0.3  # 0, but for rounding to the power 1/12
    assert (d.spectral_radius_residual < 1e-12).all()
    assert (d.arnoldi_steps[others] == 12).all()
    assert 11 <= d.arnoldi_steps[NILPOTENT] <= 12
    np.testing.assert_allclose(d.jacobian_norm, norm, rtol=1e-12)
    np.testing.assert_allclose(d.jacobian_norm[NILPOTENT], 3.0, rtol=1e-12)
    np.testing.assert_allclose(d.smallest_singular_value, smallest, rtol=1e-6, atol=1e-14)
    np.testing.assert_allclose(d.largest_singular_value, largest, rtol=1e-12)
    np.testing.assert_allclose(d.condition, largest / smallest, rtol=1e-5)
    assert d.condition[SINGULAR] > 1e9


def test_residuals_are_those_of_the_solution(exactly):
    A, b, d = exactly
    f = linear(A, b)
    with jax.enable_x64(True):
        value, stats = fixed_point(f, jnp.zeros((6, 12)), solver=Newton(rtol=1e-7, linear=GMRES(restart=12, rtol=1e-14)))
        residual, size = (np.linalg.norm(a, axis=1) for a in (f(value) - value, f(value)))
    np.testing.assert_array_equal(d.status, stats.status)
    np.testing.assert_array_equal(d.steps, stats.steps)
    np.testing.assert_allclose(d.residual, residual, rtol=1e-3, atol=1e-13)
    np.testing.assert_allclose(d.relative_residual, residual / size, rtol=1e-3, atol=1e-13)


def test_a_tight_implicit_gradient_has_no_error(exactly):
    _, _, d = exactly
    assert (d.backward_status == Status.CONVERGED).all()
    well = [GAUSS, EXPANDING, SYMMETRIC, NILPOTENT, ORTHOGONAL]
    assert (d.backward_residual[well] <= 2e-13).all()
    assert (d.gradient_error[well] <= 1e-10).all()
    # There the residual is that of the rounding of a solution that is as large as the condition.
    assert 1e-13 < d.backward_residual[SINGULAR] <= 1e-15 * d.condition[SINGULAR]
    assert d.gradient_error[SINGULAR] <= 1e-15 * d.condition[SINGULAR]


def test_large_states_are_estimated_from_the_right_side(estimated):
    A, d = estimated
    radius, norm, smallest, largest = truth(A)
    assert not d.exact
    assert (d.arnoldi_steps == 20).all()
    slack = 1e-9
    assert (d.jacobian_norm <= norm * (1 + slack)).all()
    assert (d.jacobian_norm >= 0.97 * norm).all()
    assert (d.largest_singular_value <= largest * (1 + slack)).all()
    assert (d.largest_singular_value >= 0.97 * largest).all()
    assert (d.smallest_singular_value >= smallest * (1 - slack)).all()
    regular = [GAUSS, EXPANDING, SYMMETRIC, ORTHOGONAL, SINGULAR]
    np.testing.assert_allclose(d.smallest_singular_value[regular], smallest[regular], rtol=0.02)
    assert d.smallest_singular_value[NILPOTENT] < 1e-9  # the product of the singular values is 1
    np.testing.assert_allclose(d.condition, d.largest_singular_value / d.smallest_singular_value)
    # The residual says how far the spectral radius may be from one of a matrix that close; for normal matrices it bounds the error.
    for sample in (SYMMETRIC, ORTHOGONAL):
        assert radius[sample] - d.spectral_radius_residual[sample] - slack <= d.spectral_radius[sample] <= radius[sample] + slack
    np.testing.assert_allclose(d.spectral_radius[[GAUSS, EXPANDING, SYMMETRIC]], radius[[GAUSS, EXPANDING, SYMMETRIC]], rtol=0.05)


def test_the_error_of_a_gradient_in_a_large_state(estimated):
    A, d = estimated
    W = np.linalg.inv(np.eye(40) - np.asarray(A))
    error = np.linalg.norm(np.eye(40) - W, axis=(1, 2)) / np.linalg.norm(W, axis=(1, 2))
    well = [GAUSS, EXPANDING, SYMMETRIC, ORTHOGONAL]
    np.testing.assert_array_less(error[well] / 2, d.gradient_error[well])
    np.testing.assert_array_less(d.gradient_error[well], 2 * error[well])


@pytest.mark.parametrize("n", [2, 64])
def test_the_spectral_radius_of_scaled_rotations(x64, n):
    angle = np.deg2rad(50)
    plane = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    A = jnp.asarray(0.9 * np.stack([np.kron(np.eye(n // 2), plane), rotation if n > 2 else plane]))
    f = linear(A, 1.0)
    d = diagnose(f, jnp.zeros((2, n)), key=KEY, solver=Newton(), gradient=JacobianFree())
    np.testing.assert_allclose(d.spectral_radius, 0.9, rtol=1e-12)
    assert list(d.arnoldi_steps) == [2, n]
    np.testing.assert_allclose(d.jacobian_norm, 0.9, rtol=1e-12)


def test_an_invariant_krylov_space_is_exact_in_a_large_state(x64):
    plane = 0.9 * np.array([[0.0, -1.0], [1.0, 0.0]])
    A = jnp.asarray(np.stack([np.kron(np.eye(32), plane), 0.5 * np.eye(64), np.zeros((64, 64))]))
    d = diagnose(linear(A, 1.0), jnp.zeros((3, 64)), key=KEY, solver=Newton(), steps=8)
    assert not d.exact
    np.testing.assert_allclose(d.spectral_radius, [0.9, 0.5, 0.0], rtol=1e-12)
    np.testing.assert_allclose(d.spectral_radius_residual, 0, atol=1e-14)
    assert list(d.arnoldi_steps) == [2, 1, 1]
    np.testing.assert_allclose(d.jacobian_norm, [0.9, 0.5, 0], rtol=1e-12)
    np.testing.assert_allclose(d.smallest_singular_value, [np.hypot(1, 0.9), 0.5, 1], rtol=1e-12)
    np.testing.assert_allclose(d.condition, 1, rtol=1e-12)
    assert (d.gradient_error < 1e-5).all()


def test_a_nearly_singular_equation_is_named(exactly, estimated):
    for d, least in ((exactly[2], ""), (estimated[1], "at least ")):
        (found,) = [problem for problem in d.problems if "nearly singular" in problem]
        assert f"{SINGULAR}: I - J is nearly singular (condition {least}" in found
    assert any(p.startswith(f"sample {EXPANDING}: plain iteration leaves this solution (spectral radius 1.5)") for p in exactly[2].problems)
