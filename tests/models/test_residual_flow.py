"""Residual and implicit flows, and the spline flow, as models: what a trainer needs of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import ArnoldiQuadrature, Exact
from deqflow.models.residual_flow import ImplicitNormalizingFlow, ResidualFlow
from deqflow.models.spline_flow import SplineFlow
from deqflow.nn import lipschitz_bound

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


def test_estimators_of_training_and_evaluation():
    model = ResidualFlow(blocks=1, **SMALL, log_det=ArnoldiQuadrature(), eval_log_det=Exact(), input_shape=(3,), rngs=nnx.Rngs(0))
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="pass key="):
        model.log_prob(x)
    model.eval()
    assert np.isfinite(model.log_prob(x)).all()


def test_every_block_is_certified_to_contract():
    model = ImplicitNormalizingFlow(blocks=2, **SMALL, bound=0.9, input_shape=(2,), rngs=nnx.Rngs(0))
    bounds = [lipschitz_bound(g) for layer in model.flow.bijector.layers[1:-1] for g in (layer.g_x, layer.g_z)]
    assert len(bounds) == 4
    assert max(bounds) <= 0.9
    with pytest.raises(ValueError, match="bound must be > 0 and < 1"):
        ResidualFlow(bound=1.0, input_shape=(2,), rngs=nnx.Rngs(0))


def test_a_spline_needs_two_dimensions():
    with pytest.raises(ValueError, match="two dimensions or more"):
        SplineFlow(input_shape=(1,), rngs=nnx.Rngs(0))
