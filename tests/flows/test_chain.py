import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.flows import Affine, Bijector, Chain, Permutation, Transformed, masks


class Noisy(Bijector):
    """Adds what its key gives, and reports it."""

    def __init__(self):
        self.event_shape = (2,)

    def forward_and_log_det(self, x, *, condition=None, key=None):
        assert key is not None
        noise = jax.random.normal(key, x.shape)
        return Transformed(x + noise, jnp.zeros(len(x)), {"noise": noise})

    def inverse_and_log_det(self, z, *, condition=None, key=None):
        return Transformed(z, jnp.zeros(len(z)), {})


def test_layers_apply_in_order_and_log_dets_add():
    chain = Chain([Affine((2,), scale=2.0), Permutation([1, 0]), Affine((2,), scale=1.0, shift=1.0)])
    value, log_det, diagnostics = chain.forward_and_log_det(jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(value, [[5.0, 3.0]])
    np.testing.assert_allclose(log_det, [2 * np.log(2)], rtol=1e-6)
    assert diagnostics == {}


def test_each_layer_gets_a_key_of_its_own_and_its_report_has_its_number():
    chain = Chain([Noisy(), Affine((2,), scale=2.0), Noisy()])
    diagnostics = chain.forward_and_log_det(jnp.zeros((3, 2)), key=jax.random.key(0)).diagnostics
    assert diagnostics.keys() == {"0", "2"}
    assert not np.allclose(diagnostics["0"]["noise"], diagnostics["2"]["noise"])


def test_errors():
    with pytest.raises(ValueError, match="at least one layer"):
        Chain([])
    with pytest.raises(ValueError, match=r"layer 1 of the chain takes events of shape \(3,\), layer 0 makes \(2,\)"):
        Chain([Affine((2,), scale=2.0), Affine((3,), scale=2.0)])
    with pytest.raises(ValueError, match=r"each of 0 .. 2 once"):
        Permutation([0, 2, 2])


def test_masks():
    np.testing.assert_array_equal(masks.half(4), [True, True, False, False])
    np.testing.assert_array_equal(masks.alternating(3), [True, False, True])
    board = masks.checkerboard((3, 4, 2)).reshape(3, 4, 2)
    np.testing.assert_array_equal(board[..., 0], board[..., 1])
    assert (board[:-1] != board[1:]).all()
    assert (board[:, :-1] != board[:, 1:]).all()
