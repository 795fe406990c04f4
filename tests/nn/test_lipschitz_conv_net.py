import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import Residual
from deqflow.nn import LipschitzConvNet

SHAPE = (4, 3, 2)


@jax.jit
def jacobians(g, x, c):
    g = g.prepare(c)
    return jax.vmap(jax.jacobian(lambda x: g(x[None])[0]))(x)


def move(g, scale):
    """To other parameters, as after some training."""
    keys = iter(jax.random.split(jax.random.key(2), 100))
    nnx.update(g, jax.tree.map(lambda p: p + scale * jax.random.normal(next(keys), p.shape, p.dtype), nnx.state(g, nnx.Param)))


@pytest.mark.parametrize("parametrise", ["norm_limit", "almost_orthogonal"])
def test_no_jacobian_exceeds_the_certified_bound(x64, parametrise):
    """For the first parameters and for others, at random points; and the certificate does not exceed what was asked for."""
    g = LipschitzConvNet(2, width=4, bound=0.97, activation="clipswish", parametrise=parametrise, condition_size=3, rngs=nnx.Rngs(0))
    x, c = jax.random.normal(jax.random.key(0), (5, *SHAPE)), jax.random.normal(jax.random.key(1), (1, 3))
    for scale in [0.0, 0.1, 1.0, 30.0]:
        move(g, scale)
        bound = g.lipschitz_bound()
        assert 0.3 <= bound <= 0.97
        matrices = np.asarray(jacobians(g, x, c), np.float64).reshape(5, np.prod(SHAPE), np.prod(SHAPE))
        assert np.linalg.norm(matrices, 2, axis=(1, 2)).max() <= bound


def test_a_residual_block_of_images_is_inverted_and_trained():
    block = Residual(LipschitzConvNet(2, width=4, bound=0.9, rngs=nnx.Rngs(0)), SHAPE)
    x = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    y = nnx.jit(lambda block, x: block.forward_and_log_det(x))(block, x)
    back = nnx.jit(lambda block, y: block.inverse_and_log_det(y))(block, y.value)
    np.testing.assert_allclose(back.value, x, atol=1e-5)
    np.testing.assert_allclose(back.log_det, -y.log_det, atol=1e-4)
    slopes = nnx.jit(nnx.grad(lambda block: block.forward_and_log_det(x).log_det.sum()))(block)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_the_condition_is_one_vector_per_image():
    g = LipschitzConvNet(2, width=4, condition_size=1, rngs=nnx.Rngs(0))
    x = jnp.ones((2, *SHAPE))
    y = g(x, condition=jnp.array([[0.0], [1.0]]))
    np.testing.assert_allclose(y[0], g(x[:1], condition=jnp.zeros((1, 1)))[0], atol=1e-6)
    assert not np.allclose(y[0], y[1])
    with pytest.raises(ValueError, match="a condition with 1 features, got none"):
        g(x)


@pytest.mark.parametrize("parametrise", ["norm_limit", "almost_orthogonal"])
def test_lowers_where_there_is_no_such_device_and_without_a_graph(parametrise):
    g = LipschitzConvNet(2, width=4, parametrise=parametrise, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(g, graph=False)
    x = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)
    gradient = jax.jit(jax.grad(lambda state, x: nnx.merge(graphdef, state)(x).sum()))
    exported = jax.export.export(gradient, platforms=["tpu", "cuda"])(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state), x
    )
    assert exported.platforms == ("tpu", "cuda")
