"""Krylov bases against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit.arnoldi import arnoldi, golub_kahan, orthogonalise


def products(A):
    """Products with every sample's matrix, and with its transpose."""
    return lambda v: jnp.einsum("bij,bj->bi", A, v), lambda v: jnp.einsum("bji,bj->bi", A, v)


@pytest.fixture
def matrices(x64, normal):
    """Gaussian, symmetric, nilpotent and orthogonal 10 x 10 matrices."""
    A = normal(4, 10, 10)
    return A.at[1].set(A[1] + A[1].T).at[2].set(jnp.triu(A[2], 1)).at[3].set(jnp.linalg.qr(A[3])[0])


def test_the_basis_is_orthonormal_and_the_hessenberg_matrix_is_a_in_it(matrices, normal):
    V, H, dimension = arnoldi(products(matrices)[0], normal(4, 10, seed=2), 6)
    np.testing.assert_allclose(jnp.einsum("bin,bjn->bij", V, V), np.broadcast_to(np.eye(7), (4, 7, 7)), atol=1e-13)
    np.testing.assert_allclose(jnp.einsum("bij,bkj->bki", matrices, V[:, :6]), jnp.einsum("bmk,bmn->bkn", H, V), atol=1e-12)
    np.testing.assert_allclose(H, np.triu(H, -1), atol=1e-13)
    assert list(dimension) == [6] * 4
    assert np.abs(H[1, :6] - H[1, :6].T).max() < 1e-12


def test_the_eigenvalues_of_a_full_hessenberg_matrix_are_those_of_a(matrices, normal):
    H = arnoldi(products(matrices)[0], normal(4, 10, seed=2), 10).hessenberg
    got, want = np.linalg.eigvals(H[:, :10]), np.linalg.eigvals(matrices)
    for sample in (0, 1, 3):
        np.testing.assert_allclose(np.sort_complex(got[sample]), np.sort_complex(want[sample]), atol=1e-10)
    assert np.abs(got[2]).max() < 0.2  # rounding, to the power 1/10: all are zero
    np.testing.assert_allclose(np.linalg.matrix_power(H[2, :10], 10), 0, atol=1e-10)


def test_an_invariant_space_ends_the_basis(x64, normal):
    angle = np.deg2rad(40)
    plane = 0.9 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    A = jnp.stack([jnp.asarray(np.kron(np.eye(4), plane)), 2 * jnp.eye(8), jnp.zeros((8, 8))])
    V, H, dimension = arnoldi(products(A)[0], normal(3, 8), 6)
    assert list(dimension) == [2, 1, 1]
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(H[0, :2, :2])), 0.9, rtol=1e-14)
    np.testing.assert_allclose(H[1, 0, 0], 2.0)
    np.testing.assert_array_equal(V[1, 1:], 0)
    assert np.isfinite(H).all()


def test_float32_bases_are_orthogonalised_twice():
    # Once is not enough where each product is nearly a multiple of the first few vectors.
    A = jnp.asarray(np.diag(10.0 ** -np.arange(24.0)) + 1e-3 * np.eye(24), jnp.float32)
    V, _, dimension = arnoldi(lambda v: v @ A, jnp.ones((1, 24)), 12)
    gram = np.asarray(V[0, : int(dimension[0])] @ V[0, : int(dimension[0])].T)
    assert dimension[0] >= 4
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=2e-6)


def test_half_precision_is_widened(normal):
    V, H, _ = arnoldi(lambda v: v * jnp.arange(1, 9, dtype=jnp.bfloat16), normal(2, 8).astype(jnp.bfloat16), 5)
    assert V.dtype == H.dtype == jnp.float32
    np.testing.assert_allclose(jnp.einsum("bin,bjn->bij", V, V), np.broadcast_to(np.eye(6), (2, 6, 6)), atol=1e-5)


def test_orthogonalise_takes_a_vector_apart(x64, normal):
    basis = jnp.linalg.qr(normal(2, 6, 3))[0].swapaxes(1, 2)
    w = normal(2, 6, seed=3).at[1].set(basis[1, 0] - 2 * basis[1, 2])
    part = orthogonalise(basis, w)
    whole = jnp.einsum("bm,bmn->bn", part.coefficients, basis) + part.length[:, None] * part.rest
    np.testing.assert_allclose(whole, w, atol=1e-14)
    np.testing.assert_allclose(jnp.linalg.norm(part.rest[0]), 1.0)
    np.testing.assert_array_equal(part.rest[1], 0)
    assert part.length[1] == 0 < part.length[0]


def test_bidiagonalisation(matrices, normal):
    U, V, B, dimension = golub_kahan(*products(matrices), normal(4, 10, seed=2), 10)
    np.testing.assert_allclose(jnp.einsum("bij,bkj->bki", matrices, V), jnp.einsum("bmk,bmn->bkn", B, U), atol=1e-12)
    np.testing.assert_allclose(B, np.triu(np.tril(B, 1)), atol=1e-12)
    for sample in (0, 1):
        np.testing.assert_allclose(np.linalg.svd(B[sample])[1], np.linalg.svd(matrices[sample])[1], atol=1e-12)
    assert list(dimension) == [10, 10, 10, 1]  # an orthogonal matrix has a single singular value
    np.testing.assert_allclose(B[3, 0, 0], 1.0)
    assert np.linalg.svd(B[2])[1][-1] < 1e-12


def test_singular_values_in_between(matrices, normal):
    B = golub_kahan(*products(matrices), normal(4, 10, seed=2), 6).matrix
    for sample in (0, 1):
        whole, part = np.linalg.svd(matrices[sample])[1], np.linalg.svd(B[sample])[1]
        assert whole[-1] < part[-1] < part[0] < whole[0]
        assert part[0] > 0.99 * whole[0]


def test_samples_are_independent_bitwise(matrices, normal):
    start = normal(4, 10, seed=2)
    basis = jax.jit(lambda A: (arnoldi(products(A)[0], start, 6), golub_kahan(*products(A), start, 6)))
    first, second = basis(matrices), basis(matrices.at[1:].set(jnp.nan))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), first, second)
    assert np.isnan(second[0].hessenberg[1]).any()
