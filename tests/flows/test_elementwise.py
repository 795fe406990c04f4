import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.flows import Affine, Logit


@pytest.mark.parametrize("margin", [1e-6, 0.05])
def test_logit_is_finite_at_the_ends_and_nan_beyond(margin):
    logit = Logit((1,), margin=margin)
    x = jnp.array([[0.0], [1.0], [-0.2], [1.2], [np.nan]])
    value, log_det, _ = logit.forward_and_log_det(x)
    expected = [True, True, False, False, False]
    np.testing.assert_array_equal(np.isfinite(value[:, 0]), expected)
    np.testing.assert_array_equal(np.isfinite(log_det), expected)
    np.testing.assert_allclose(value[0], -value[1], rtol=1e-6)


def test_logit_inverse_takes_any_latent():
    logit = Logit((1,), margin=0.01)
    value, log_det, _ = logit.inverse_and_log_det(jnp.array([[-1e4], [0.0], [1e4]]))
    np.testing.assert_allclose(value[:, 0], [-0.01 / 0.98, 0.5, 1 + 0.01 / 0.98], rtol=1e-5)
    assert np.isfinite(log_det).all()


@pytest.mark.parametrize("margin", [0.0, 0.5, -0.1, np.nan])
def test_logit_margin_out_of_range(margin):
    with pytest.raises(ValueError, match="margin must be > 0 and < 0.5"):
        Logit((1,), margin=margin)


@pytest.mark.parametrize("scale", [0.0, np.inf, np.nan])
def test_affine_scale_out_of_range(scale):
    with pytest.raises(ValueError, match="scale must be finite and not zero"):
        Affine((1,), scale=scale)
