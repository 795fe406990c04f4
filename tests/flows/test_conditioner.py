import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import ResidualCNN, ResidualMLP


def network(dropout=0.0, condition_size=0):
    net = ResidualMLP(3, 2, width=16, depth=2, dropout=dropout, condition_size=condition_size, rngs=nnx.Rngs(0))
    net.last.kernel[...] = jax.random.normal(jax.random.key(1), (16, 2))
    return net


X = jnp.linspace(-1, 1, 12).reshape(4, 3)


def test_dropout_is_random_in_training_and_absent_in_evaluation():
    net = network(dropout=0.5)
    net.train()
    a, again, b = (net(X, key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert not np.allclose(a, b)
    net.eval()
    np.testing.assert_array_equal(net(X), net(X, key=jax.random.key(0)))
    np.testing.assert_allclose(net(X), network()(X), rtol=1e-6)


def test_blocks_drop_different_features():
    net = network(dropout=0.5)
    net.train()
    kernel = jnp.eye(16)
    for block in net.blocks:
        block.kernel[...] = kernel
    key = jax.random.key(0)
    kept = [np.asarray(net.dropout(jnp.ones((4, 16)), rngs=jax.random.fold_in(key, i))) > 0 for i in range(2)]
    assert (kept[0] != kept[1]).any()


def test_dropout_without_a_key_is_refused_in_training_only():
    net = network(dropout=0.5)
    net.train()
    with pytest.raises(ValueError, match="dropout in training mode is random"):
        net(X)
    net.eval()
    net(X)


def test_condition_matters_and_must_have_its_size():
    net = network(condition_size=2)
    zero, one = net(X, condition=jnp.zeros((4, 2))), net(X, condition=jnp.ones((4, 2)))
    assert not np.allclose(zero, one)
    with pytest.raises(ValueError, match="condition with 2 features, got none"):
        net(X)
    with pytest.raises(ValueError, match="condition with 2 features, got 3"):
        net(X, condition=jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="condition with 0 features, got 2"):
        network()(X, condition=jnp.ones((4, 2)))


def test_convolutions_see_five_by_five_pixels_and_the_condition_everywhere():
    net = ResidualCNN(1, 1, width=8, depth=2, condition_size=1, rngs=nnx.Rngs(0))
    net.last.kernel[...] = jax.random.normal(jax.random.key(1), net.last.kernel.shape)
    x = jnp.zeros((1, 7, 7, 1))
    of_pixels, of_condition = jax.jacobian(lambda x, c: net(x, condition=c)[0, 3, 3, 0], argnums=(0, 1))(x, jnp.ones((1, 1)))
    seen = np.asarray(of_pixels[0, :, :, 0] != 0)
    np.testing.assert_array_equal(seen, np.pad(np.ones((5, 5), bool), 1))
    assert (of_condition != 0).all()
