import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.nn import Conv, Linear, WeightNorm


@pytest.mark.parametrize("shape", [(5, 4), (3, 3, 2, 4)])
def test_starts_as_the_kernel_and_then_length_and_direction_are_apart(shape):
    kernel = jax.random.normal(jax.random.key(0), shape)
    weight = WeightNorm(kernel)
    np.testing.assert_allclose(weight(), kernel, rtol=1e-5)
    weight.direction[...] *= 7.0
    np.testing.assert_allclose(weight(), kernel, rtol=1e-5)
    weight.length[...] = jnp.arange(1.0, 5.0)
    np.testing.assert_allclose(np.linalg.norm(weight().reshape(-1, 4), axis=0), [1, 2, 3, 4], rtol=1e-5)


def test_the_gradient_leaves_the_length_of_the_direction_alone():
    weight = WeightNorm(jax.random.normal(jax.random.key(0), (5, 4)))
    gradient = nnx.grad(lambda weight: jnp.sum(jnp.sin(weight())))(weight)
    np.testing.assert_allclose(jnp.sum(gradient.direction[...] * weight.direction[...], axis=0), 0, atol=1e-5)
    assert float(jnp.abs(gradient.direction[...]).max()) > 0.1


@pytest.mark.parametrize("make", [lambda **k: Linear(4, 6, **k), lambda **k: Conv(4, 6, **k)], ids=["Linear", "Conv"])
def test_layers_start_the_same_with_and_without(make):
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 4))
    normalised, plain = make(parametrise=WeightNorm, gain=0.5, rngs=nnx.Rngs(0)), make(gain=0.5, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(normalised(x), plain(x), atol=1e-5)
    f = normalised.prepare()
    normalised.kernel.length[...] *= 2
    np.testing.assert_allclose(f(x), plain(x), atol=1e-5)  # computed when it was prepared
    np.testing.assert_allclose(normalised(x), 2 * plain(x), atol=1e-5)
