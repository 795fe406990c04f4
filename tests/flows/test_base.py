"""Base distributions: densities integrate to one, samples follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import Mixture, StandardNormal, StudentT, Uniform

BASES = {
    "normal": lambda shape: StandardNormal(shape),
    "uniform": lambda shape: Uniform(shape, low=-1.0, high=2.0),
    "student": lambda shape: StudentT(shape, degrees=3.0),
    "mixture": lambda shape: Mixture(shape, components=3, rngs=nnx.Rngs(0)),
}


@pytest.fixture(params=BASES)
def make(request):
    return BASES[request.param]


def test_samples_follow_the_density(x64, make):
    """The cumulative distribution of 20 000 samples is within 0.02 of the integral of the density."""
    base = make((1,))
    grid = np.linspace(-60, 60, 240_001)
    density = np.exp(base.log_prob(jnp.asarray(grid)[:, None]))
    cumulative = np.cumsum(density) * (grid[1] - grid[0])
    np.testing.assert_allclose(cumulative[-1], 1, atol=1e-3)
    samples = np.sort(np.asarray(base.sample(jax.random.key(0), 20_000))[:, 0])
    empirical = np.searchsorted(samples, grid) / len(samples)
    assert np.abs(empirical - cumulative).max() < 0.02


def test_dimensions_multiply_and_events_have_any_shape(make):
    base = make((2, 3))
    z = base.sample(jax.random.key(0), 4)
    assert z.shape == (4, 2, 3)
    log_prob = base.log_prob(z)
    assert log_prob.shape == (4,)
    assert np.isfinite(log_prob).all()
    assert log_prob.dtype == z.dtype
    if not isinstance(base, Mixture):
        one = make((1,))
        np.testing.assert_allclose(log_prob, one.log_prob(z.reshape(-1, 1)).reshape(4, 6).sum(1), rtol=1e-5)


def test_a_low_temperature_narrows(make):
    base = make((1,))
    cold, warm = (np.asarray(base.sample(jax.random.key(0), 4000, temperature=t)) for t in (0.25, 1.0))
    assert np.subtract(*np.percentile(cold, [75, 25])) < np.subtract(*np.percentile(warm, [75, 25]))


def test_a_mixture_learns():
    mixture = Mixture((2,), components=2, rngs=nnx.Rngs(0))
    slopes = nnx.grad(lambda m: m.log_prob(jnp.ones((3, 2))).sum())(mixture)
    for leaf in jax.tree.leaves(slopes):
        assert (np.asarray(leaf) != 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform((1,), low=1.0, high=1.0), "high must be above low"),
        (lambda: StudentT((1,), degrees=0.0), "degrees must be > 0"),
        (lambda: Mixture((1,), components=0, rngs=nnx.Rngs(0)), "one component or more"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
