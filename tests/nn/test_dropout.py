import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.nn import VariationalDropout


def test_one_mask_and_the_mean_stays():
    drop = VariationalDropout(0.25).prepare((200, 100), jax.random.key(0))
    z = jnp.ones((200, 100))
    np.testing.assert_array_equal(drop(z), drop(z))
    np.testing.assert_allclose(np.unique(drop(z)), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(drop(z).mean(), 1.0, atol=0.02)


@pytest.mark.parametrize(("rate", "key", "training"), [(0.0, 0, True), (0.5, None, True), (0.5, 0, False)])
def test_when_nothing_is_dropped(rate, key, training):
    dropout = VariationalDropout(rate)
    dropout.train() if training else dropout.eval()
    z = jnp.ones((4, 4))
    np.testing.assert_array_equal(dropout.prepare(z.shape, None if key is None else jax.random.key(key))(z), z)


def test_the_rate_has_a_range():
    with pytest.raises(ValueError, match="rate must be >= 0 and < 1, got 1"):
        VariationalDropout(1.0)
