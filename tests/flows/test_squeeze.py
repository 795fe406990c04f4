import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.flows import Squeeze


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_follows_the_formula(factor):
    squeeze = Squeeze((6, 12, 2), factor=factor)
    x = np.arange(2 * 6 * 12 * 2, dtype=np.float32).reshape(2, 6, 12, 2)
    z, log_det, _ = squeeze.forward_and_log_det(jnp.asarray(x))
    expected = np.empty((2, 6 // factor, 12 // factor, factor**2 * 2), np.float32)
    for i in range(factor):
        for j in range(factor):
            for c in range(2):
                expected[..., (factor * i + j) * 2 + c] = x[:, i::factor, j::factor, c]
    np.testing.assert_array_equal(z, expected)
    np.testing.assert_array_equal(log_det, np.zeros(2))
    assert z.shape[1:] == squeeze.latent_shape


def test_errors():
    with pytest.raises(ValueError, match=r"image of 5 x 4 pixels does not part into blocks of 2 x 2; pad or crop it to multiples of 2"):
        Squeeze((5, 4, 1))
    with pytest.raises(ValueError, match=r"only images .* can be squeezed, got events of shape \(4,\)"):
        Squeeze((4,))
    with pytest.raises(ValueError, match="factor must be >= 1, got 0"):
        Squeeze((4, 4, 1), factor=0)
    with pytest.raises(ValueError, match=r"expected an input of shape \(batch, 2, 2, 4\), got \(3, 4, 4, 1\)"):
        Squeeze((4, 4, 1)).inverse_and_log_det(jnp.zeros((3, 4, 4, 1)))
