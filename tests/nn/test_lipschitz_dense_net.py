import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.nn import Activation, Concatenation, Conv, Linear, LipschitzDenseNet


@jax.jit
def jacobians(f, x):
    return jax.vmap(jax.jacobian(lambda x: f(x[None])[0]))(x)


def move(module, scale):
    """To other parameters, as after some training."""
    keys = iter(jax.random.split(jax.random.key(2), 100))
    nnx.update(module, jax.tree.map(lambda p: p + scale * jax.random.normal(next(keys), p.shape, p.dtype), nnx.state(module, nnx.Param)))


@pytest.mark.parametrize("length", [0.5, 3.0])
def test_the_bound_of_a_concatenation_is_reached_and_not_exceeded(x64, length):
    """By a linear stretch of the length, as ELU is for positive numbers, at every angle; which is why no better formula is to be had."""
    layer = Linear(2, 2, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.diag(jnp.array([length, 0.1]))
    layer.bias[...] = 10 * jnp.ones(2)
    block = Concatenation(layer, Activation("elu"))
    for angle in [0.0, 0.4, 2.0]:
        block.angle[...] = jnp.asarray(angle)
        norms = np.linalg.norm(jacobians(block, jnp.ones((1, 2))), 2, axis=(1, 2))
        np.testing.assert_allclose(norms, block.lipschitz_bound(), rtol=1e-6)
        assert norms.max() <= block.lipschitz_bound()


def test_a_concatenation_of_unknown_parts_or_images():
    layer = Linear(2, 2, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.full((2, 2), jnp.nan)
    block = Concatenation(layer, Activation("sine"))
    block.angle[...] = jnp.asarray(0.0)
    assert block.lipschitz_bound() == np.inf
    images = Concatenation(Conv(2, 3, rngs=nnx.Rngs(0)), Activation("clipswish"))
    assert images(jnp.ones((1, 4, 4, 2))).shape == (1, 4, 4, 8)
    assert images.lipschitz_bound() < np.inf


@pytest.mark.parametrize("activation", ["clipswish", "sincos"])
def test_no_jacobian_exceeds_the_certified_bound(x64, activation):
    g = LipschitzDenseNet(3, growth=8, depth=2, bound=0.97, activation=activation, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (50, 3))
    for scale in [0.0, 0.1, 1.0, 30.0]:
        move(g, scale)
        bound = g.lipschitz_bound()
        assert 0.9 <= bound <= 0.97
        assert np.linalg.norm(jacobians(g, x), 2, axis=(1, 2)).max() <= bound


def test_float32_stays_certified_and_the_condition_has_no_limit():
    g = LipschitzDenseNet(2, growth=4, depth=3, bound=0.9, condition_size=1, rngs=nnx.Rngs(0))
    g.condition.kernel[...] = 1e3 * jnp.ones((1, 4))
    assert g.lipschitz_bound() <= 0.9
    x = jnp.ones((1, 2))
    assert not np.allclose(g(x, condition=jnp.ones((1, 1))), g(x, condition=jnp.zeros((1, 1))))
    with pytest.raises(ValueError, match="a condition with 1 features, got none"):
        g(x)
    slopes = nnx.jit(nnx.grad(lambda g: g(x, condition=jnp.ones((1, 1))).sum()))(g)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
