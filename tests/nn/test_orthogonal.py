import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.nn import Linear, Orthogonal, lipschitz_bound


@pytest.mark.parametrize("shape", [(4, 4), (7, 3), (3, 7), (1, 5)])
def test_every_singular_value_is_the_limit(x64, shape):
    for scale in [0.0, 0.1, 1.0, 100.0]:
        layer = Linear(*shape, parametrise=lambda kernel: Orthogonal(kernel, limit=0.9), rngs=nnx.Rngs(0))
        layer.kernel.kernel[...] *= scale
        values = np.linalg.svd(layer.kernel(), compute_uv=False)
        np.testing.assert_allclose(values, 0.9, rtol=1e-11)
        assert values.max() <= lipschitz_bound(layer) <= 0.9


def test_rounding_in_float32_stays_within_the_limit():
    for scale in [0.1, 1.0, 30.0]:
        kernel = Orthogonal(scale * jax.random.normal(jax.random.key(0), (96, 48)))()
        values = np.linalg.svd(np.asarray(kernel, np.float64), compute_uv=False)
        assert 1 - 3e-5 < values.min() <= values.max() <= 1


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_derivative_is_that_of_the_whole_map(x64, shape):
    kernel, direction = jax.random.normal(jax.random.key(0), (2, *shape), jnp.float64)
    f = jax.jit(lambda k: jnp.sum(jnp.sin(3 * Orthogonal(k)())))
    numeric = (f(kernel + 1e-6 * direction) - f(kernel - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(jax.grad(f)(kernel), direction), numeric, rtol=1e-6)


def test_lowers_where_there_is_no_such_device():
    gradient = jax.jit(jax.grad(lambda kernel: Orthogonal(kernel)().sum()))
    exported = jax.export.export(gradient, platforms=["tpu", "cuda"])(jax.ShapeDtypeStruct((5, 3), jnp.float32))
    assert exported.platforms == ("tpu", "cuda")


def test_convolutions_are_refused():
    with pytest.raises(ValueError, match="Orthogonal takes matrices"):
        Orthogonal(jnp.ones((3, 3, 2, 2)))
