import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqflow.flows import ActNorm, AffineCoupling, Chain, Flow, Mixture, ResidualMLP, StandardNormal, masks, reverse_kl

MEAN, SCALE = jnp.array([2.0, -1.0]), jnp.array([0.5, 3.0])


def log_density(x):
    """A normal distribution times 7."""
    return jax.scipy.stats.norm.logpdf(x, MEAN, SCALE).sum(1) + jnp.log(7.0)


def gaussian():
    return Flow(StandardNormal((2,)), ActNorm((2,)))


def matching():
    flow = gaussian()
    flow.bijector.log_scale[...] = -jnp.log(SCALE)
    flow.bijector.shift[...] = -MEAN / SCALE
    return flow


def slopes(flow, key, n, **options):
    graphdef, state = nnx.split(flow)
    return jax.grad(lambda state: reverse_kl(nnx.merge(graphdef, state), log_density, key, n, **options))(state)


@pytest.mark.parametrize("path_gradient", [True, False])
def test_it_fits_a_gaussian(path_gradient):
    graphdef, state = nnx.split(gaussian())
    optimizer = optax.adam(optax.linear_schedule(0.3, 0.0, 150))

    @jax.jit
    def fit(state):
        def step(carry, key):
            state, moments = carry
            loss, slope = jax.value_and_grad(
                lambda state: reverse_kl(nnx.merge(graphdef, state), log_density, key, 32, path_gradient=path_gradient)
            )(state)
            updates, moments = optimizer.update(slope, moments)
            return (optax.apply_updates(state, updates), moments), loss

        return jax.lax.scan(step, (state, optimizer.init(state)), jax.random.split(jax.random.key(0), 150))

    (state, _), losses = fit(state)
    fitted, exact = nnx.merge(graphdef, state).bijector, matching().bijector
    tolerance = 0.01 if path_gradient else 0.15
    np.testing.assert_allclose(fitted.log_scale[...], exact.log_scale[...], atol=tolerance)
    np.testing.assert_allclose(fitted.shift[...], exact.shift[...], atol=3 * tolerance)
    np.testing.assert_allclose(losses[-1], -np.log(7), atol=0.02)


def test_the_path_gradient_vanishes_where_the_flow_is_the_density():
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slopes(matching(), jax.random.key(0), 8))) < 1e-5
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slopes(matching(), jax.random.key(0), 8, path_gradient=False))) > 0.1


def test_both_gradients_agree_in_expectation_and_the_values_too():
    conditioner = ResidualMLP(1, 2, width=4, depth=0, rngs=nnx.Rngs(0))
    conditioner.last.kernel[...] = 0.5 * jax.random.normal(jax.random.key(5), (4, 2))
    flow = Flow(StandardNormal((2,)), Chain([ActNorm((2,)), AffineCoupling(masks.half(2), conditioner)]))
    first, second = (slopes(flow, jax.random.key(1), 40_000, path_gradient=path) for path in (True, False))
    for ours, theirs in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.05, rtol=0.05)
    values = [reverse_kl(flow, log_density, jax.random.key(1), 40_000, path_gradient=path) for path in (True, False)]
    np.testing.assert_allclose(values[0], values[1], rtol=0.05)


def test_errors():
    with pytest.raises(ValueError, match="those of Mixture have no derivative"):
        reverse_kl(Flow(Mixture((2,), components=2, rngs=nnx.Rngs(0)), ActNorm((2,))), log_density, jax.random.key(0), 4)
    with pytest.raises(ValueError, match=r"one number per sample, shape \(4,\), got \(4, 2\)"):
        reverse_kl(gaussian(), lambda x: x, jax.random.key(0), 4)
