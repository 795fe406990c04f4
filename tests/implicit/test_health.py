"""The numbers that training watches, against dense linear algebra in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import GMRES, Implicit, JacobianFree
from deqflow.implicit.health import health, spectral_radius

TIGHT = Implicit(linear=GMRES(rtol=1e-4, restart=30))


def gauss(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", [1, 4, 32])
def test_radius_of_small_matrices(n):
    A = gauss(50, n, n)
    np.testing.assert_allclose(spectral_radius(jnp.asarray(A)), np.abs(np.linalg.eigvals(A)).max(axis=1), rtol=1e-3)


def test_radius_where_powers_vanish_or_are_not_finite():
    A = np.stack([np.zeros((6, 6)), np.triu(gauss(6, 6), 1), np.full((6, 6), np.nan), 1e-30 * np.eye(6), 1e30 * np.eye(6)])
    found = np.asarray(spectral_radius(jnp.asarray(A, jnp.float32)))
    np.testing.assert_array_equal(found[:3], [0, 0, np.nan])
    np.testing.assert_allclose(found[3:], [1e-30, 1e30], rtol=1e-3)


def test_health_is_that_of_the_jacobian_and_of_the_backward_solve():
    scale = jnp.array([0.3, 0.9, 1.5])  # the last one is an expanding map, whose gradient is as well defined
    W = gauss(30, 30) / np.sqrt(30)
    f = lambda z: scale[:, None, None] * (z.reshape(3, 30) @ W).reshape(z.shape)  # noqa: E731
    found = jax.jit(lambda z: health(f, z, TIGHT))(jnp.ones((3, 5, 6)))
    np.testing.assert_allclose(found.spectral_radius, scale * np.abs(np.linalg.eigvals(W)).max(), rtol=1e-2)
    norms = found.jacobian_norm / (scale * np.linalg.norm(W, 2))
    assert ((norms > 0.9) & (norms < 1.0001)).all()
    assert (found.backward_residual < 1e-4).all()
    assert found.backward_steps[0] < found.backward_steps[1] <= found.backward_steps[2] <= 30


def test_a_coarse_backward_solve_says_so():
    W = 0.9 * gauss(40, 40) / np.sqrt(40)
    coarse = Implicit(linear=GMRES(rtol=1e-9, max_steps=3))
    found = health(lambda z: z @ W, jnp.ones((2, 40)), coarse)
    assert (found.backward_residual > 0.1).all() and (found.backward_steps == 3).all()


def test_a_gradient_that_solves_nothing_has_no_backward_solve():
    found = health(lambda z: 0.5 * z, jnp.ones((2, 3)), JacobianFree())
    assert found.backward_residual is None and found.backward_steps is None
    np.testing.assert_allclose(found.spectral_radius, 0.5, rtol=1e-5)
