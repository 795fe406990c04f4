"""Certificates of single layers: no Jacobian is above them, in float64, for the first weights and for any other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.nn import Activation, AlmostOrthogonal, Conv, Linear, NormLimit, SpectralNorm, conv_same, lipschitz_bound, refresh
from deqflow.nn.certificate import conv_spectral_norm

SIZE = (5, 4)


@functools.partial(jax.jit, static_argnames=("size", "stride"))
def matrix(kernel, size=SIZE, stride=1):
    """What a kernel does, to vectors or to images of this size, as a dense matrix."""
    if kernel.ndim == 2:
        return kernel
    basis = jnp.eye(size[0] * size[1] * kernel.shape[2], dtype=kernel.dtype).reshape(-1, *size, kernel.shape[2])
    return conv_same(basis, kernel)[:, ::stride, ::stride].reshape(len(basis), -1)


def norm(kernel, **options):
    return np.linalg.norm(np.asarray(matrix(kernel, **options)), 2)


WEIGHTS = {"norm limit": NormLimit, "almost orthogonal": AlmostOrthogonal}
SHAPES = {
    "matrix": (6, 5),
    "wide": (3, 9),
    "3 x 3": (3, 3, 2, 3),
    "3 x 3, fewer outputs": (3, 3, 5, 2),
    "1 x 1": (1, 1, 4, 4),
    "5 x 1": (5, 1, 2, 2),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("make", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_stay_within_their_limit_and_are_certified_to(x64, make, shape):
    """Over a hundred random steps, from small to huge weights; the certificate is above the norm and not above the limit."""
    weight = make(jax.random.normal(jax.random.key(0), shape, jnp.float64), limit=0.9)
    layer = Linear(*shape, rngs=nnx.Rngs(0)) if len(shape) == 2 else Conv(*shape[2:], rngs=nnx.Rngs(0))
    layer.kernel = weight
    value = nnx.jit(lambda w: w())
    for step, key in enumerate(jax.random.split(jax.random.key(1), 100)):
        weight.kernel[...] += 1.1**step * jax.random.normal(key, shape, jnp.float64)
        if step % 10 == 9:
            assert norm(value(weight)) <= lipschitz_bound(layer) <= 0.9 * (1 + 1e-12)
            assert norm(value(weight)) >= 0.3


@pytest.mark.parametrize("make", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_float32_rounding_is_within_the_limit_too(make):
    for seed in range(10):
        kernel = jax.random.normal(jax.random.key(seed), (3, 3, 8, 8)) * 10.0 ** (seed - 5)
        assert conv_spectral_norm(make(kernel, limit=0.9)()) <= 0.9 * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (3, 3, 2, 2)])
def test_almost_orthogonal_reaches_its_limit_where_rows_are_orthogonal(x64, shape):
    if len(shape) == 2:
        q = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 3)))[0]
        kernel = jnp.asarray(q.T if shape[0] == 3 else q) * 7.0
    else:
        kernel = jnp.zeros(shape).at[0, 2].set(jnp.array([[0.0, 5.0], [-1.0, 0.0]]))  # a shift, and rows of different lengths
    np.testing.assert_allclose(np.linalg.svd(matrix(AlmostOrthogonal(kernel)()))[1].max(), 1, rtol=1e-12)
    if len(shape) == 4:
        assert conv_spectral_norm(AlmostOrthogonal(kernel)()) <= 1 + 1e-12


@pytest.mark.parametrize("shape", [(4, 3), (3, 3, 2, 2)])
def test_almost_orthogonal_derivative_is_that_of_the_whole_map(x64, shape):
    kernel, direction = jax.random.normal(jax.random.key(0), (2, *shape), jnp.float64)
    f = jax.jit(lambda k: jnp.sum(jnp.sin(3 * AlmostOrthogonal(k)())))
    numeric = (f(kernel + 1e-6 * direction) - f(kernel - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(jax.grad(f)(kernel), direction), numeric, rtol=1e-6)


EXTREMES = [np.zeros((3, 4)), np.zeros((3, 3, 2, 2)), np.full((3, 3), 1e-30), np.full((3, 3), 1e30), np.diag([1, 0, 0])]


@pytest.mark.parametrize("kernel", EXTREMES)
def test_almost_orthogonal_is_finite_at_extreme_weights(kernel):
    kernel = jnp.asarray(kernel, jnp.float32)
    value, slope = jax.value_and_grad(lambda k: jnp.sum(AlmostOrthogonal(k)()))(kernel)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8)])
def test_a_convolutions_certificate_holds_with_padding_and_strides(x64, size, stride):
    for seed in range(3):
        kernel = jax.random.normal(jax.random.key(seed), (3, 3, 2, 3), jnp.float64)
        assert norm(kernel, size=size, stride=stride) <= conv_spectral_norm(kernel)


def test_a_convolutions_certificate_is_close_on_large_images(x64):
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 2), jnp.float64)
    assert conv_spectral_norm(kernel) <= 1.04 * norm(kernel, size=(16, 16))


def test_a_circular_norm_of_the_same_size_is_no_bound_with_zero_padding(x64):
    """The fault to avoid: on a grid of n angles the symbol misses the angles between, which zero padding sees."""
    kernel = jnp.asarray([[1.0, 1, -1]])[..., None, None]
    missed = [n for n in range(3, 9) if norm(kernel, size=(1, n)) > np.abs(np.fft.fft(np.ravel(kernel), n)).max() * (1 + 1e-9)]
    assert missed
    assert all(norm(kernel, size=(1, n)) <= conv_spectral_norm(kernel) for n in missed)


def test_power_iteration_sees_the_padding(x64):
    """On small images the norm of a padded convolution is well below that of its kernel as a matrix of patches, and is what is found."""
    kernel = jnp.ones((3, 3, 1, 1))
    weight = SpectralNorm(kernel, bound=1.0, size=(3, 3), steps=100, rngs=nnx.Rngs(0))
    refresh(weight)
    np.testing.assert_allclose(norm(weight(), size=(3, 3)), 1, rtol=1e-9)
    as_patches = kernel / np.linalg.norm(kernel.reshape(9, 1), 2)
    assert norm(as_patches, size=(3, 3)) > 1.9  # dividing by the norm of the reshaped kernel leaves a map that doubles lengths


def test_refresh_changes_power_iteration_vectors_alone():
    layers = nnx.List([Linear(4, 4, parametrise=make, rngs=nnx.Rngs(0)) for make in (NormLimit, AlmostOrthogonal)])
    layers.append(Linear(4, 4, parametrise=functools.partial(SpectralNorm, bound=0.1, rngs=nnx.Rngs(1)), rngs=nnx.Rngs(0)))
    layers[-1].kernel.vector[...] = jnp.full((1, 4), 0.5)
    leaves = lambda: {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree.leaves_with_path(nnx.state(layers))}  # noqa: E731
    before = leaves()
    refresh(layers)
    (changed,) = [path for path, leaf in leaves().items() if not np.array_equal(leaf, before[path])]
    assert "vector" in changed


def test_sequences_multiply_and_what_is_tied_counts_as_often_as_it_is_used():
    layer = Conv(2, 2, size=1, gain=-0.5, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.eye(2).reshape(1, 1, 2, 2)
    parts = [layer, Activation("elu"), layer, layer]
    for sequence in (parts, nnx.List(parts), nnx.Sequential(*parts)):
        assert 0.125 <= lipschitz_bound(sequence) <= 0.125 * (1 + 1e-5)
    assert lipschitz_bound(nnx.Sequential(layer, jnp.sin)) == np.inf
    layer.kernel[...] = jnp.full((1, 1, 2, 2), jnp.nan)
    assert lipschitz_bound(layer) == np.inf
