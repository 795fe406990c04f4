import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.flows import ActNorm, Affine, Chain


@pytest.mark.parametrize("log_scale", [0.0, 1.5])
def test_initialisation_centres_the_data_and_sets_their_spread(log_scale):
    x = 3 + jnp.array([1.0, 10.0, 0.01]) * jax.random.normal(jax.random.key(0), (500, 3))
    norm = ActNorm((3,), initial_log_scale=log_scale)
    norm.initialize(x)
    z = norm.forward_and_log_det(x).value
    np.testing.assert_allclose(z.mean(0), np.zeros(3), atol=1e-3)
    np.testing.assert_allclose(z.std(0), np.full(3, np.exp(log_scale)), rtol=1e-4)


def test_image_has_one_scale_for_each_channel():
    x = jnp.array([1.0, 5.0]) * jax.random.normal(jax.random.key(0), (50, 4, 4, 2)) + jnp.array([0.0, 2.0])
    norm = ActNorm((4, 4, 2))
    norm.initialize(x)
    z = norm.forward_and_log_det(x).value
    np.testing.assert_allclose(z.mean((0, 1, 2)), np.zeros(2), atol=1e-4)
    np.testing.assert_allclose(z.std((0, 1, 2)), np.ones(2), rtol=1e-4)


def test_dimension_without_variation_stays_finite():
    x = jnp.stack([jnp.linspace(0, 1, 8), jnp.full(8, 2.5)], axis=1)
    norm = ActNorm((2,))
    norm.initialize(x)
    z, log_det, _ = norm.forward_and_log_det(x)
    assert np.isfinite(z).all()
    assert np.isfinite(log_det).all()
    np.testing.assert_allclose(z[:, 1], np.zeros(8), atol=1e-5)


def test_chain_initialises_each_layer_from_the_output_of_the_one_before():
    x = 4 + 2 * jax.random.normal(jax.random.key(0), (300, 2))
    first, second = ActNorm((2,), initial_log_scale=2.0), ActNorm((2,))
    chain = Chain([Affine((2,), scale=10.0), first, second])
    chain.initialize(x)
    np.testing.assert_allclose(first.log_scale[...], 2.0 - np.log(10.0 * x.std(0)), rtol=1e-4)
    np.testing.assert_allclose(second.log_scale[...], [-2.0, -2.0], rtol=1e-4)
    z = chain.forward_and_log_det(x).value
    np.testing.assert_allclose(z.std(0), np.ones(2), rtol=1e-4)
