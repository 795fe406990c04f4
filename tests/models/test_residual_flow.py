"""Residual and implicit flows, and the spline flow, as models: what a trainer needs of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import ArnoldiQuadrature, Exact, InvertibleLinear
from deqflow.models.residual_flow import ImplicitNormalizingFlow, ResidualFlow
from deqflow.models.spline_flow import SplineFlow
from deqflow.nn import LipschitzDenseNet

SMALL = {"width": 8, "depth": 1}
MODELS = {
    "residual": (ResidualFlow, {"blocks": 2, **SMALL}),
    "implicit": (ImplicitNormalizingFlow, {"blocks": 1, **SMALL}),
    "spline": (SplineFlow, {"couplings": 2, "bins": 4, **SMALL}),
}


@pytest.fixture(params=MODELS)
def build(request):
    kind, options = MODELS[request.param]
    return lambda **more: kind(**options, **more, rngs=nnx.Rngs(0))


def test_the_density_integrates_to_one(build):
    """After data-dependent initialisation, over the plane."""
    model = build(input_shape=(2,))
    model.initialize(jnp.asarray(np.random.default_rng(0).normal(1, 2, (256, 2)), jnp.float32), jax.random.key(0))
    model.eval()
    axis = jnp.linspace(-14, 16, 241)
    points = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    graph, state = nnx.split(model)
    density = jax.jit(lambda state, x: jnp.exp(nnx.merge(graph, state).log_prob(x)))(state, points)
    np.testing.assert_allclose(density.sum() * (axis[1] - axis[0]) ** 2, 1, atol=1e-3)


def test_the_inverse_error_is_that_of_the_way_there_and_back():
    model = ResidualFlow(blocks=1, **SMALL, input_shape=(2,), rngs=nnx.Rngs(0))
    model.eval()
    x = jax.random.normal(jax.random.key(0), (5, 2))
    error = nnx.jit(lambda model, x: model.inverse_error(x))(model, x)
    assert error.shape == (5,)
    assert 0 < error.max() < 1e-5


def test_integers_condition_samples_and_gradients(build):
    model = build(input_shape=(2, 2, 1), levels=17, condition_size=3)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 17, (6, 2, 2, 1)))
    c = jax.random.normal(jax.random.key(1), (6, 3))
    model.initialize(x, jax.random.key(0), condition=c)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return -nnx.merge(graph, params, rest).log_prob(x, condition=c, key=jax.random.key(0)).mean()

    value, slopes = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    for path, slope in jax.tree.leaves_with_path(slopes):
        assert np.isfinite(slope).all(), path
    model.eval()
    samples = model.sample(jax.random.key(2), 6, condition=c)
    assert samples.shape == x.shape
    assert set(np.unique(samples)) <= set(range(17))
    with pytest.raises(ValueError, match=r"expected data of shape \(batch, 2, 2, 1\)"):
        model.log_prob(x[:, :1], key=jax.random.key(0))


@pytest.mark.parametrize("activation", ["sincos", "clipswish"])
def test_no_parameter_is_weakly_typed(activation):
    """Else the first updates, which make it strong, would each compile the step again."""
    model = ResidualFlow(blocks=1, **SMALL, activation=activation, input_shape=(2,), rngs=nnx.Rngs(0))
    dense = LipschitzDenseNet(2, growth=2, depth=1, rngs=nnx.Rngs(0))
    assert not [path for path, leaf in jax.tree.leaves_with_path(nnx.state((model, dense))) if leaf.weak_type]


def test_estimators_of_training_and_evaluation():
    model = ResidualFlow(blocks=1, **SMALL, log_det=ArnoldiQuadrature(), eval_log_det=Exact(), input_shape=(3,), rngs=nnx.Rngs(0))
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="pass key="):
        model.log_prob(x)
    model.eval()
    assert np.isfinite(model.log_prob(x)).all()


def test_every_block_is_certified_to_contract():
    model = ImplicitNormalizingFlow(blocks=2, **SMALL, bound=0.9, input_shape=(2,), rngs=nnx.Rngs(0))
    bounds = model.lipschitz_bounds()
    assert len(bounds) == 4
    assert min(bounds) > 0.5
    assert max(bounds) <= 0.9
    g = model.flow.bijector.layers[1].block.g_z
    g.layers[0].kernel.limit = 9.0  # what a bound is read off are the weights in use
    assert max(model.lipschitz_bounds()) > 0.9
    with pytest.raises(ValueError, match="bound must be > 0 and < 1"):
        ResidualFlow(bound=1.0, input_shape=(2,), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", [ResidualFlow, SplineFlow])
def test_whitened_data_have_no_correlations(kind):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)) + 5, jnp.float32)
    model = kind(**SMALL, whiten=True, input_shape=(3,), rngs=nnx.Rngs(0))
    model.initialize(x, jax.random.key(0))
    white = model.flow.bijector.layers[0].forward_and_log_det(x).value
    np.testing.assert_allclose(np.cov(white.T, ddof=0), np.eye(3), atol=1e-3)
    if kind is SplineFlow:  # whose couplings start as the identity: what is left is the likelihood under a normal distribution
        covariance = np.cov(x.T, ddof=0)
        gaussian = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
        np.testing.assert_allclose(model.log_prob(x).mean(), gaussian, rtol=1e-4)
    with pytest.raises(ValueError, match="more than 3 vectors, got 3"):
        model.initialize(x[:3], jax.random.key(0))


def test_couplings_may_be_mixed_by_linear_maps():
    model = SplineFlow(couplings=4, bins=4, **SMALL, mixing="linear", input_shape=(3,), rngs=nnx.Rngs(0))
    assert sum(isinstance(layer, InvertibleLinear) for layer in model.flow.bijector.layers) == 1
    x = jax.random.normal(jax.random.key(0), (4, 3))
    back = model.flow.bijector.inverse_and_log_det(model.flow.bijector.forward_and_log_det(x).value).value
    np.testing.assert_allclose(back, x, atol=1e-5)


def test_a_spline_needs_two_dimensions():
    with pytest.raises(ValueError, match="two dimensions or more"):
        SplineFlow(input_shape=(1,), rngs=nnx.Rngs(0))
