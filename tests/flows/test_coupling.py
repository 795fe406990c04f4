import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import AffineCoupling, ResidualMLP, masks


class Constant(nnx.Module):
    """A conditioner that answers the same whatever it is asked."""

    def __init__(self, value, outputs):
        self.value, self.outputs = value, outputs

    def __call__(self, x, *, condition=None, key=None):
        return jnp.full((len(x), self.outputs), self.value)


@pytest.mark.parametrize("raw", [-1e30, 1e30, np.inf])
def test_scale_stays_within_its_bound(raw):
    coupling = AffineCoupling(masks.half(4), Constant(raw, 4), bound=1.5)
    log_det = coupling.forward_and_log_det(jnp.zeros((1, 4))).log_det
    np.testing.assert_allclose(log_det, [2 * 1.5 * np.sign(raw)], rtol=1e-6)


def test_large_data_do_not_overflow():
    # The exponential of an unbounded scale overflows float32 from 89 on.
    conditioner = ResidualMLP(1, 2, width=8, depth=1, rngs=nnx.Rngs(0))
    conditioner.last.kernel[...] = jnp.ones((8, 2))
    coupling = AffineCoupling(masks.half(2), conditioner)
    x = jnp.array([[1e6, 1e6], [-1e6, 1e6], [1e6, -1e6]])
    for result in (coupling.forward_and_log_det(x), coupling.inverse_and_log_det(x)):
        assert np.isfinite(result.value).all()
        assert np.isfinite(result.log_det).all()
        assert np.abs(result.log_det).max() <= 2.0


@pytest.mark.parametrize("mask", [masks.half(5), ~masks.half(5), masks.alternating(5)], ids=["half", "other_half", "alternating"])
def test_kept_dimensions_are_unchanged_and_the_others_follow_the_formula(mask):
    raw, shift = 0.7, 0.7
    coupling = AffineCoupling(mask, Constant(raw, 2 * int((~mask).sum())), bound=2.0)
    x = jax.random.normal(jax.random.key(0), (3, 5))
    z = coupling.forward_and_log_det(x).value
    np.testing.assert_array_equal(z[:, mask], x[:, mask])
    scale = np.exp(2.0 * np.tanh(raw / 2.0))
    np.testing.assert_allclose(z[:, ~mask], x[:, ~mask] * scale + shift, rtol=1e-5)


def test_new_coupling_is_the_identity():
    coupling = AffineCoupling(masks.half(4), ResidualMLP(2, 4, width=8, depth=2, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (3, 4))
    z, log_det, diagnostics = coupling.forward_and_log_det(x)
    np.testing.assert_array_equal(z, x)
    np.testing.assert_array_equal(log_det, np.zeros(3))
    assert diagnostics == {}


@pytest.mark.parametrize("mask", [np.ones(3, bool), np.zeros(3, bool)], ids=["all", "none"])
def test_mask_must_part_the_dimensions(mask):
    with pytest.raises(ValueError, match="keeps some dimensions and transforms others"):
        AffineCoupling(mask, Constant(0.0, 2))


def test_bound_must_be_positive():
    with pytest.raises(ValueError, match="bound must be > 0"):
        AffineCoupling(masks.half(2), Constant(0.0, 2), bound=0.0)


def test_conditioner_of_the_wrong_size_is_refused():
    coupling = AffineCoupling(masks.half(4), Constant(0.0, 3))
    with pytest.raises(ValueError, match=r"must return shape \(2, 4\), got \(2, 3\)"):
        coupling.forward_and_log_det(jnp.zeros((2, 4)))


@pytest.mark.parametrize(
    "mask",
    [masks.channels((4, 4, 3)), ~masks.channels((4, 4, 3)), masks.checkerboard((4, 4, 3))],
    ids=["channels", "other_channels", "board"],
)
def test_images_follow_the_formula_of_the_flattened_event(mask):
    """The pixels kept stay, those transformed follow, and the conditioner sees the kept ones alone."""
    shape = (4, 4, 3)
    seen = []

    def conditioner(kept, *, condition=None, key=None):
        seen.append(kept)
        moved = 3 if kept.shape[-1] == 3 else 3 - kept.shape[-1]
        return jnp.concatenate([jnp.full((*kept.shape[:-1], moved), r) for r in (0.7, 0.2)], axis=-1)

    coupling = AffineCoupling(mask.reshape(shape), conditioner, bound=2.0)
    x = 1 + jax.random.uniform(jax.random.key(0), (2, *shape))
    z, log_det, _ = coupling.forward_and_log_det(x)
    flat_x, flat_z = np.asarray(x).reshape(2, -1), np.asarray(z).reshape(2, -1)
    log_scale = 2.0 * np.tanh(0.7 / 2.0)
    np.testing.assert_array_equal(flat_z[:, mask], flat_x[:, mask])
    np.testing.assert_allclose(flat_z[:, ~mask], flat_x[:, ~mask] * np.exp(log_scale) + 0.2, rtol=1e-5)
    np.testing.assert_allclose(log_det, np.full(2, (~mask).sum() * log_scale), rtol=1e-5)
    flat_seen = np.asarray(seen[0]).reshape(2, -1)
    np.testing.assert_array_equal(flat_seen[flat_seen != 0].reshape(2, -1), flat_x[:, mask])


def test_conditioner_of_an_image_must_answer_with_an_image():
    shape = (2, 2, 3)
    coupling = AffineCoupling(masks.channels(shape).reshape(shape), Constant(0.0, 4))
    with pytest.raises(ValueError, match=r"must return shape \(5, 2, 2, 4\), got \(5, 4\)"):
        coupling.forward_and_log_det(jnp.zeros((5, *shape)))
