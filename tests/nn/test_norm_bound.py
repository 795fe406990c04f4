import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from deqflow.nn import conv_norm_bound, conv_same, norm_bound


def gaussian(*shape):
    return np.random.default_rng(0).standard_normal(shape)


MATRICES = {
    "square": gaussian(20, 20),
    "complex, tall batch": gaussian(2, 30, 7) + 1j * gaussian(3, 30, 7)[1:],
    "orthogonal, the worst case": np.linalg.qr(gaussian(64, 64))[0],
    "large and small": np.stack([1e30 * gaussian(4, 4), 1e-30 * gaussian(4, 4)]),
    "zero": np.zeros((3, 3)),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES.keys())
def test_bounds_the_largest_singular_value_from_above_and_closely(matrix):
    norm, bound = np.linalg.norm(matrix, 2, axis=(-2, -1)), jax.jit(norm_bound)(matrix)
    assert bound.shape == norm.shape
    assert (bound >= norm * (1 - 1e-5)).all()
    assert (bound <= 1.07 * norm).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_gradient_does_not_depend_on_the_size(size):
    """It is that of the norm, of degree zero, where squares of the entries overflow or vanish too."""
    matrix = jnp.asarray(gaussian(4, 3), jnp.float32)
    np.testing.assert_allclose(jax.grad(norm_bound)(size * matrix), jax.grad(norm_bound)(matrix), rtol=1e-4)


@pytest.mark.parametrize(("squarings", "shape"), [(2, (7, 7)), (5, (3, 8)), (10, (9, 4))])
def test_the_gradient_is_that_of_the_trace_of_a_power(squarings, shape, x64):
    """`∂ (tr (MᴴM)ᑫ)^(1/2q) / ∂M`, by singular values."""
    matrix = jnp.asarray(gaussian(*shape))
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    q = 2**squarings
    value = s[0] * np.sum((s / s[0]) ** (2 * q)) ** (1 / (2 * q))
    bound, slope = jax.jit(jax.value_and_grad(functools.partial(norm_bound, squarings=squarings)))(matrix)
    np.testing.assert_allclose(bound, value, rtol=1e-12)
    np.testing.assert_allclose(slope, (u * (s / value) ** (2 * q - 1)) @ v, atol=1e-9)


def test_derivatives_along_a_complex_direction(x64):
    matrix = jnp.asarray(gaussian(5, 3))

    @jax.jit
    def along(t):
        return norm_bound(matrix * jnp.exp(1j * matrix) + t * (matrix + 1j * matrix[::-1]))

    slope, curvature = jax.jit(jax.value_and_grad(jax.grad(along)))(0.0)
    np.testing.assert_allclose(slope, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-7)
    np.testing.assert_allclose(curvature, (along(1e-3) + along(-1e-3) - 2 * along(0.0)) / 1e-6, rtol=1e-4)


@functools.partial(jax.jit, static_argnums=1)
def dense(kernel, shape):
    """The matrix of `conv_same` on images of this shape."""
    zero = jnp.zeros((1, *shape, kernel.shape[2]))
    return jax.jacobian(lambda z: ravel_pytree(conv_same(z, kernel))[0])(zero).reshape(-1, zero.size)


def rotations(angle):
    """A kernel whose symbol 1 + 2 cos(θ ± angle) is largest at that angle, in both directions."""
    turn = lambda a: np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])  # noqa: E731
    return np.array([[np.kron(turn(angle * i), turn(angle * j)) for j in (-1, 0, 1)] for i in (-1, 0, 1)])


KERNELS = {
    "random": (gaussian(3, 3, 4, 4), (9, 8)),
    "other sides and channels": (gaussian(5, 1, 2, 3), (20, 2)),
    "between the angles": (rotations(np.pi / 8), (12, 12)),
    "a pixel": (gaussian(1, 1, 6, 6), (1, 1)),
}


@pytest.mark.parametrize(("kernel", "shape"), KERNELS.values(), ids=KERNELS.keys())
def test_bounds_the_norm_of_a_convolution(kernel, shape):
    norm, bound = np.linalg.norm(dense(kernel, shape), 2), jax.jit(conv_norm_bound)(kernel)
    assert norm * (1 - 1e-5) <= bound <= 1.5 * norm


def test_the_factor_for_what_lies_between_the_angles_is_needed():
    kernel, shape = KERNELS["between the angles"]
    seen = np.linalg.norm(np.fft.fft2(kernel, s=(8, 8), axes=(0, 1)), 2, axis=(-2, -1)).max()
    assert 1.05 * seen < np.linalg.norm(dense(kernel, shape), 2)
