import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import (
    ActNorm,
    Affine,
    Chain,
    Flow,
    Inverse,
    InvertibleLinear,
    Multiscale,
    Product,
    Repeat,
    Squeeze,
    StandardNormal,
    StudentT,
)

IMAGE = (8, 4, 1)


def three_levels():
    """Levels that multiply by 2, 3 and 5."""
    return Multiscale(
        [
            Chain([Squeeze(IMAGE), Affine((4, 2, 4), scale=2.0)]),
            Chain([Squeeze((4, 2, 2)), Affine((2, 1, 8), scale=3.0)]),
            Affine((2, 1, 4), scale=5.0),
        ]
    )


def standard_normals(bijector):
    return Product([StandardNormal(shape) for shape in bijector.latent_shape])


def test_half_the_channels_leave_after_every_level():
    bijector = three_levels()
    x = jax.random.normal(jax.random.key(0), (3, *IMAGE))
    z, log_det, diagnostics = bijector.forward_and_log_det(x)
    h = 2 * Squeeze(IMAGE).forward_and_log_det(x).value
    fine, h = h[..., 2:], 3 * Squeeze((4, 2, 2)).forward_and_log_det(h[..., :2]).value
    middle, coarse = h[..., 4:], 5 * h[..., :4]
    for actual, expected in zip(z, (fine, middle, coarse), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert bijector.latent_shape == tuple(part.shape[1:] for part in z) == ((4, 2, 2), (2, 1, 4), (2, 1, 4))
    np.testing.assert_allclose(log_det, np.full(3, 32 * np.log(2) + 16 * np.log(3) + 8 * np.log(5)), rtol=1e-6)
    assert diagnostics == {}


def test_one_level_and_vectors():
    assert Multiscale([Affine((3,), scale=2.0)]).latent_shape == ((3,),)
    halves = Multiscale([Affine((6,), scale=2.0), Affine((3,), scale=1.0)])
    z = halves.forward_and_log_det(jnp.arange(6.0)[None]).value
    np.testing.assert_allclose(z[0], [[6.0, 8.0, 10.0]])
    np.testing.assert_allclose(z[1], [[0.0, 2.0, 4.0]])


def test_every_level_is_initialised_from_what_the_levels_before_pass_on():
    bijector = Multiscale([Chain([Squeeze(IMAGE), ActNorm((4, 2, 4))]), Chain([Squeeze((4, 2, 2)), ActNorm((2, 1, 8))])])
    x = 5 + 3 * jax.random.normal(jax.random.key(0), (200, *IMAGE))
    bijector.initialize(x)
    for part in bijector.forward_and_log_det(x).value:
        np.testing.assert_allclose(part.mean((0, 1, 2)), np.zeros(part.shape[-1]), atol=1e-4)
        np.testing.assert_allclose(part.std((0, 1, 2)), np.ones(part.shape[-1]), rtol=1e-4)


def test_flow_has_the_density_of_its_linear_map(x64):
    rngs = nnx.Rngs(0)
    levels = [Chain([Squeeze((4, 2, 1)), InvertibleLinear((2, 1, 4), rngs=rngs)]), Affine((2, 1, 2), scale=2.0)]
    flow = Flow(standard_normals(Multiscale(levels)), Multiscale(levels))
    x, log_prob = flow.sample_and_log_prob(jax.random.key(0), 20000)
    assert x.shape == (20000, 4, 2, 1)
    np.testing.assert_allclose(flow.log_prob(x), log_prob, rtol=1e-6)
    jacobian = jax.jacobian(lambda x: jnp.concatenate([z.ravel() for z in flow.bijector.forward_and_log_det(x).value]))(x[:1]).reshape(8, 8)
    covariance = np.linalg.inv(jacobian.T @ jacobian)
    np.testing.assert_allclose(np.cov(np.asarray(x).reshape(-1, 8).T), covariance, atol=0.05)
    density = jax.scipy.stats.multivariate_normal.logpdf(x[:5].reshape(5, 8), jnp.zeros(8), covariance)
    np.testing.assert_allclose(log_prob[:5], density, rtol=1e-6)


def test_product_is_the_product():
    base = Product([StandardNormal((2, 1)), StudentT((3,), degrees=3.0)])
    a, b = base.sample(jax.random.key(0), 4)
    np.testing.assert_allclose(base.log_prob((a, b)), base.parts[0].log_prob(a) + base.parts[1].log_prob(b))
    still = base.sample(jax.random.key(0), 4, temperature=0.0)
    np.testing.assert_array_equal(still[0], np.zeros((4, 2, 1)))
    same = Product([StandardNormal((2,)), StandardNormal((2,))]).sample(jax.random.key(0), 4)
    assert (same[0] != same[1]).all()  # each part has a key of its own


def test_errors():
    with pytest.raises(ValueError, match="at least one level"):
        Multiscale([])
    with pytest.raises(ValueError, match=r"level 0 makes latents of shape \(2, 2, 3\), whose 3 channels cannot be halved; begin the level"):
        Multiscale([Affine((2, 2, 3), scale=1.0), Affine((2, 2, 1), scale=1.0)])
    with pytest.raises(ValueError, match=r"level 1 takes events of shape \(2, 2, 4\), level 0 passes on \(2, 2, 2\)"):
        Multiscale([Squeeze((4, 4, 1)), Affine((2, 2, 4), scale=1.0)])
    with pytest.raises(ValueError, match="level 0 must make one array with channels"):
        Multiscale([three_levels(), Affine((2, 1, 2), scale=1.0)])
    bijector = three_levels()
    with pytest.raises(ValueError, match=r"the bijector's latents have shape \(\(4, 2, 2\), \(2, 1, 4\), \(2, 1, 4\)\)"):
        Flow(StandardNormal(IMAGE), bijector)
    z = bijector.forward_and_log_det(jnp.zeros((2, *IMAGE))).value
    expected = r"expected an input of shape \(\(batch, 4, 2, 2\), \(batch, 2, 1, 4\), \(batch, 2, 1, 4\)\)"
    for wrong in (z[:2], z[0], (z[0], z[1][:1], z[2]), list(z)):  # too few, one array, different batches, no tuple
        with pytest.raises(ValueError, match=expected):
            bijector.inverse_and_log_det(wrong)
        with pytest.raises(ValueError, match=expected):
            standard_normals(bijector).log_prob(wrong)
    with pytest.raises(ValueError, match="at least one distribution"):
        Product([])


def test_what_changes_the_shape_composes_and_is_turned_around_but_not_repeated():
    squeeze = Squeeze((4, 4, 1))
    assert Inverse(squeeze).event_shape == (2, 2, 4)
    assert Inverse(squeeze).latent_shape == (4, 4, 1)
    assert Chain([squeeze, Affine((2, 2, 4), scale=2.0), Inverse(squeeze)]).latent_shape == (4, 4, 1)
    with pytest.raises(ValueError, match=r"layer 1 of the chain takes events of shape \(4, 4, 1\), layer 0 makes \(2, 2, 4\)"):
        Chain([squeeze, Affine((4, 4, 1), scale=2.0)])
    with pytest.raises(ValueError, match=r"must keep the shape of what it takes, but makes \(2, 2, 4\) of \(4, 4, 1\)"):
        Repeat(lambda rngs: Squeeze((4, 4, 1)), 2, rngs=nnx.Rngs(0))
