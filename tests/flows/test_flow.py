import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import ActNorm, Affine, AffineCoupling, Bijector, Chain, Flow, ResidualMLP, StandardNormal, masks


def flow_2d(condition_size=0):
    """A flow in the plane that is far from a normal distribution."""
    rngs = nnx.Rngs(0)
    layers: list[Bijector] = [ActNorm((2,))]
    for mask in [masks.half(2), ~masks.half(2), masks.half(2)]:
        conditioner = ResidualMLP(1, 2, width=8, depth=1, condition_size=condition_size, rngs=rngs)
        conditioner.last.kernel[...] = 0.4 * jax.random.normal(rngs(), (8, 2))
        layers.append(AffineCoupling(mask, conditioner))
    return Flow(StandardNormal((2,)), Chain(layers))


def masses(flow, condition_size=0):
    """The probability of each cell of a fine grid, by the density at its centre."""
    edge = jnp.linspace(-15, 15, 601)
    grid = jnp.stack(jnp.meshgrid(edge, edge), axis=-1).reshape(-1, 2)
    condition = jnp.full((len(grid), condition_size), 0.5) if condition_size else None
    log_prob = jax.jit(lambda x: flow.log_prob(x, condition=condition))(grid)
    return grid, jnp.exp(log_prob) * (edge[1] - edge[0]) ** 2


@pytest.mark.parametrize("condition_size", [0, 2])
def test_density_integrates_to_one(condition_size):
    flow = flow_2d(condition_size)
    _, mass = masses(flow, condition_size)
    np.testing.assert_allclose(mass.sum(), 1.0, atol=1e-3)
    normal = masses(Flow(StandardNormal((2,)), Affine((2,), scale=1.0)), 0)[1]
    assert np.abs(mass - normal).sum() > 0.2  # total variation: not simply the base


def test_standard_normal_against_scipy():
    z = jax.random.normal(jax.random.key(0), (5, 2, 3))
    expected = jax.scipy.stats.norm.logpdf(z).sum((1, 2))
    np.testing.assert_allclose(StandardNormal((2, 3)).log_prob(z), expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_samples_of_an_affine_flow_have_its_moments(temperature):
    flow = Flow(StandardNormal((2,)), Affine((2,), scale=0.5, shift=-1.0))  # x = 2 (z + 1)
    x = flow.sample(jax.random.key(0), 20000, temperature=temperature)
    np.testing.assert_allclose(x.mean(0), [2.0, 2.0], atol=0.07)
    np.testing.assert_allclose(x.std(0), np.full(2, 2 * temperature), atol=0.05)


def test_samples_follow_the_density():
    flow = flow_2d()
    grid, mass = masses(flow)
    x = flow.sample(jax.random.key(0), 20000)
    for statistic in (jnp.tanh, lambda x: x > 0.5):
        expected = (mass[:, None] * statistic(grid)).sum(0)
        np.testing.assert_allclose(statistic(x).mean(0), expected, atol=0.02)


@pytest.mark.parametrize("condition_size", [0, 2])
def test_sample_and_log_prob_agree(condition_size):
    flow = flow_2d(condition_size)
    condition = jnp.ones((50, condition_size)) if condition_size else None
    x, log_prob = flow.sample_and_log_prob(jax.random.key(0), 50, condition=condition)
    np.testing.assert_allclose(log_prob, flow.log_prob(x, condition=condition), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(x, flow.sample(jax.random.key(0), 50, condition=condition))


def test_nan_is_answered_with_nan():
    log_prob = flow_2d().log_prob(jnp.array([[np.nan, 0.0], [0.0, np.nan], [0.0, 0.0]]))
    np.testing.assert_array_equal(np.isnan(log_prob), [True, True, False])


def test_far_points_have_no_density_but_no_nan():
    log_prob = flow_2d().log_prob(jnp.array([[1e30, 0.0], [0.0, -1e30]]))
    np.testing.assert_array_equal(log_prob, [-np.inf, -np.inf])


def test_event_shapes_must_agree():
    with pytest.raises(ValueError, match=r"base has events of shape \(3,\), the bijector's latents have shape \(2,\)"):
        Flow(StandardNormal((3,)), Affine((2,), scale=1.0))
