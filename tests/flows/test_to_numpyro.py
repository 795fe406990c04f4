import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.util import log_density

from deqflow.flows import ActNorm, Affine, AffineCoupling, Chain, Flow, Logit, Mixture, ResidualMLP, StandardNormal, masks, to_numpyro


def normal(scale=2.0, shift=3.0):
    """Independent normal variables of this mean and standard deviation."""
    return Flow(StandardNormal((2,)), Affine((2,), scale=1 / scale, shift=-shift / scale))


def conditional():
    conditioner = ResidualMLP(1, 2, width=4, depth=0, condition_size=3, rngs=nnx.Rngs(0))
    conditioner.last.kernel[...] = jax.random.normal(jax.random.key(5), (4, 2))
    return Flow(StandardNormal((2,)), AffineCoupling(masks.half(2), conditioner))


def test_shapes_and_values():
    prior = to_numpyro(normal())
    x = prior.sample(jax.random.key(0), (3, 4))
    assert (prior.batch_shape, prior.event_shape, x.shape) == ((), (2,), (3, 4, 2))
    np.testing.assert_allclose(prior.log_prob(x), dist.Normal(jnp.full(2, 3.0), 2.0).to_event(1).log_prob(x), rtol=1e-5)
    assert prior.log_prob(x[0, 0]).shape == ()


def test_the_condition_gives_the_batch():
    flow, condition = conditional(), jax.random.normal(jax.random.key(1), (5, 3))
    likelihood = to_numpyro(flow, condition=condition)
    x = likelihood.sample(jax.random.key(0), (4,))
    assert (likelihood.batch_shape, x.shape) == ((5,), (4, 5, 2))
    expected = jnp.stack([flow.log_prob(row, condition=condition) for row in x])
    np.testing.assert_allclose(likelihood.log_prob(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(likelihood.log_prob(x[0, 0]), flow.log_prob(jnp.tile(x[0, 0], (5, 1)), condition=condition), rtol=1e-5)


def test_it_passes_through_transformations():
    prior = to_numpyro(Flow(StandardNormal((2,)), ActNorm((2,))))
    x = jnp.ones((3, 2))
    np.testing.assert_allclose(jax.jit(lambda prior, x: prior.log_prob(x))(prior, x), prior.log_prob(x), rtol=1e-6)
    assert prior.has_rsample
    assert not to_numpyro(Flow(Mixture((2,), components=2, rngs=nnx.Rngs(0)), ActNorm((2,)))).has_rsample


def test_the_support_is_that_of_the_data():
    unit = to_numpyro(Flow(StandardNormal((2,)), Logit((2,), margin=1e-3)), support=constraints.unit_interval)
    assert unit.support(jnp.array([0.3, 0.9]))
    assert not unit.support(jnp.array([0.3, 1.9]))
    assert to_numpyro(normal()).support(jnp.array([0.3, 1.9]))


def model(y=None):
    """One normal variable with a flow for its prior and one noisy observation of it."""
    x = numpyro.sample("x", to_numpyro(normal()))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


Y = jnp.array([1.0, 5.0])
POSTERIOR = (0.2 * 3.0 + 0.8 * Y, np.sqrt(0.8))


def test_prior_in_a_model():
    x = jnp.array([0.5, 2.0])
    joint, _ = log_density(model, (Y,), {}, {"x": x})
    expected = jax.scipy.stats.norm.logpdf(x, 3.0, 2.0).sum() + jax.scipy.stats.norm.logpdf(Y, x, 1.0).sum()
    np.testing.assert_allclose(joint, expected, rtol=1e-5)
    mcmc = MCMC(NUTS(model), num_warmup=300, num_samples=1500, progress_bar=False)
    mcmc.run(jax.random.key(0), Y)
    samples = mcmc.get_samples()["x"]
    np.testing.assert_allclose(samples.mean(0), POSTERIOR[0], atol=0.15)
    np.testing.assert_allclose(samples.std(0), np.full(2, POSTERIOR[1]), atol=0.1)


def test_guide_that_is_trained():
    flow = Flow(StandardNormal((2,)), Chain([ActNorm((2,))]))

    def guide(y=None):
        numpyro.sample("x", to_numpyro(flow, name="flow"))

    svi = SVI(model, guide, optax.adam(optax.linear_schedule(0.1, 0.0, 1000)), Trace_ELBO(num_particles=32))
    result = svi.run(jax.random.key(0), 1000, Y, progress_bar=False)
    nnx.update(flow, result.params["flow"])
    x = flow.sample(jax.random.key(1), 5000)
    np.testing.assert_allclose(x.mean(0), POSTERIOR[0], atol=0.1)
    np.testing.assert_allclose(x.std(0), np.full(2, POSTERIOR[1]), atol=0.1)


def test_plates():
    def plated():
        with numpyro.plate("n", 5):
            return numpyro.sample("x", to_numpyro(normal()))

    assert numpyro.handlers.seed(plated, 0)().shape == (5, 2)


def test_without_numpyro_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpyro", None)
    with pytest.raises(ImportError, match=r"pip install 'deqflow\[flows\]'"):
        to_numpyro(normal())
