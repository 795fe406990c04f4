import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import Dequantize, Flow, StandardNormal


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32])
def test_inverse_is_exact(levels, dtype):
    # At 65536 levels float32 has 7 bits left for the noise, so that some sums round up to the next integer.
    x = (jnp.arange(20000) * 7919 % levels).astype(dtype).reshape(-1, 4)
    dequantize = Dequantize((4,), levels=levels)
    z, log_det, _ = dequantize.forward_and_log_det(x, key=jax.random.key(0))
    np.testing.assert_array_equal(dequantize.inverse_and_log_det(z).value, x)
    np.testing.assert_array_equal(log_det, np.zeros(len(x)))


def test_bytes_are_taken_as_they_are():
    x = jnp.array([[0, 255]], jnp.uint8)
    z = Dequantize((2,), levels=256).forward_and_log_det(x, key=jax.random.key(0)).value
    assert z.dtype == jnp.float32
    np.testing.assert_array_equal(jnp.floor(z), [[0.0, 255.0]])


def test_noise_is_uniform_and_follows_the_key():
    dequantize = Dequantize((1,), levels=2)
    x = jnp.ones((20000, 1), jnp.int32)
    first, again, second = (dequantize.forward_and_log_det(x, key=jax.random.key(k)).value - x for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
    assert first.min() >= 0
    assert first.max() < 1
    deciles = np.histogram(first, bins=10, range=(0, 1))[0] / len(x)
    np.testing.assert_allclose(deciles, np.full(10, 0.1), atol=0.01)  # 5 standard errors


def test_log_likelihood_is_a_lower_bound():
    # The latent is standard normal in x + u - 2: P(x) is a difference of its distribution function.
    flow = Flow(StandardNormal((1,)), Dequantize((1,), levels=4))
    levels = jnp.arange(4)
    x = jnp.repeat(levels, 5000)[:, None]
    bound = flow.log_prob(x, key=jax.random.key(0)).reshape(4, -1)
    exact = jnp.log(jax.scipy.stats.norm.cdf(levels + 1) - jax.scipy.stats.norm.cdf(levels))
    error = bound.std(1) / np.sqrt(bound.shape[1])
    assert (bound.mean(1) <= exact + 4 * error).all()
    assert (bound.mean(1) >= exact - 0.5).all()  # and not an idle one


@pytest.mark.parametrize("value", [-1.0, 17.0, 3.5, np.nan])
def test_what_is_not_a_level_becomes_nan(value):
    x = jnp.array([[3.0, value], [0.0, 16.0]])
    z = Dequantize((2,), levels=17).forward_and_log_det(x, key=jax.random.key(0)).value
    np.testing.assert_array_equal(np.isnan(z), [[False, True], [False, False]])


def test_inverse_stays_within_the_levels_and_keeps_nan():
    z = jnp.array([[-3.0, 99.0, np.nan]])
    np.testing.assert_array_equal(Dequantize((3,), levels=17).inverse_and_log_det(z).value, [[0.0, 16.0, np.nan]])


def test_errors():
    with pytest.raises(ValueError, match="levels must be 2 or more, got 1"):
        Dequantize((2,), levels=1)
    with pytest.raises(ValueError, match="pass key"):
        Dequantize((2,), levels=3).forward_and_log_det(jnp.zeros((1, 2)))


def test_graph_free():
    nnx.split(Dequantize((2,), levels=3), graph=False)
