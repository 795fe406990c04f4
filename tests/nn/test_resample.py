import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.nn import Resample, windows


def test_a_map_of_windows_is_a_strided_convolution():
    x, kernel = jax.random.normal(jax.random.key(0), (2, 6, 4, 3)), jax.random.normal(jax.random.key(1), (2, 2, 3, 5))
    want = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(windows(x, 2) @ kernel.reshape(12, 5), want, atol=1e-4)


def test_windows_at_the_border_are_filled_up_with_zeros():
    x = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(windows(x, 2)[0, 1], [[7, 8, 0, 0], [9, 0, 0, 0]])


@pytest.mark.parametrize(("octaves", "size"), [(2, (2, 1)), (1, (4, 2)), (-1, (16, 8))])
def test_resolution_and_scale(octaves, size):
    x = 5 * jax.random.normal(jax.random.key(0), (3, 8, 4, 4))
    y = nnx.jit(lambda m, x: m(x))(Resample(4, 6, octaves=octaves, groups=2, rngs=nnx.Rngs(0)), x)
    assert y.shape == (3, *size, 6)
    np.testing.assert_allclose(y.mean(axis=(1, 2)).reshape(3, 2, 3).mean(axis=2), 0, atol=1e-5)  # each group is normalised


def test_up_repeats_every_pixel():
    y = Resample(4, 4, octaves=-2, groups=1, rngs=nnx.Rngs(0))(jax.random.normal(jax.random.key(0), (1, 2, 2, 4)))
    np.testing.assert_array_equal(y, y[:, ::4, ::4].repeat(4, axis=1).repeat(4, axis=2))
