import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqflow.flows import ActNorm, Affine, AffineCoupling, Chain, Dequantize, Flow, ResidualMLP, StandardNormal, masks


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32])
def test_inverse_is_exact(levels, dtype):
    # At 65536 levels float32 has 7 bits left for the noise, so that some sums round up to the next integer.
    x = (jnp.arange(20000) * 7919 % levels).astype(dtype).reshape(-1, 4)
    dequantize = Dequantize((4,), levels=levels)
    z, log_det, _ = dequantize.forward_and_log_det(x, key=jax.random.key(0))
    np.testing.assert_array_equal(dequantize.inverse_and_log_det(z).value, x)
    np.testing.assert_array_equal(log_det, np.zeros(len(x)))


def test_bytes_are_taken_as_they_are():
    x = jnp.array([[0, 255]], jnp.uint8)
    z = Dequantize((2,), levels=256).forward_and_log_det(x, key=jax.random.key(0)).value
    assert z.dtype == jnp.float32
    np.testing.assert_array_equal(jnp.floor(z), [[0.0, 255.0]])


def test_noise_is_uniform_and_follows_the_key():
    dequantize = Dequantize((1,), levels=2)
    x = jnp.ones((20000, 1), jnp.int32)
    first, again, second = (dequantize.forward_and_log_det(x, key=jax.random.key(k)).value - x for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
    assert first.min() >= 0
    assert first.max() < 1
    deciles = np.histogram(first, bins=10, range=(0, 1))[0] / len(x)
    np.testing.assert_allclose(deciles, np.full(10, 0.1), atol=0.01)  # 5 standard errors


def test_log_likelihood_is_a_lower_bound():
    # The latent is standard normal in x + u - 2: P(x) is a difference of its distribution function.
    flow = Flow(StandardNormal((1,)), Dequantize((1,), levels=4))
    levels = jnp.arange(4)
    x = jnp.repeat(levels, 5000)[:, None]
    bound = flow.log_prob(x, key=jax.random.key(0)).reshape(4, -1)
    exact = jnp.log(jax.scipy.stats.norm.cdf(levels + 1) - jax.scipy.stats.norm.cdf(levels))
    error = bound.std(1) / np.sqrt(bound.shape[1])
    assert (bound.mean(1) <= exact + 4 * error).all()
    assert (bound.mean(1) >= exact - 0.5).all()  # and not an idle one


@pytest.mark.parametrize("value", [-1.0, 17.0, 3.5, np.nan])
def test_what_is_not_a_level_becomes_nan(value):
    x = jnp.array([[3.0, value], [0.0, 16.0]])
    z = Dequantize((2,), levels=17).forward_and_log_det(x, key=jax.random.key(0)).value
    np.testing.assert_array_equal(np.isnan(z), [[False, True], [False, False]])


def test_inverse_stays_within_the_levels_and_keeps_nan():
    z = jnp.array([[-3.0, 99.0, np.nan]])
    np.testing.assert_array_equal(Dequantize((3,), levels=17).inverse_and_log_det(z).value, [[0.0, 16.0, np.nan]])


def test_errors():
    with pytest.raises(ValueError, match="levels must be 2 or more, got 1"):
        Dequantize((2,), levels=1)
    with pytest.raises(ValueError, match=r"noise has events of shape \(2,\), the data of shape \(3,\)"):
        Dequantize((3,), levels=3, noise=noise())
    with pytest.raises(ValueError, match="pass key"):
        Dequantize((2,), levels=3).forward_and_log_det(jnp.zeros((1, 2)))


def noise(condition_size=2, scale=0.0):
    """A flow of the noise in the plane, conditioned on the integers."""
    rngs, layers = nnx.Rngs(0), [ActNorm((2,))]
    for mask in (masks.half(2), ~masks.half(2)):
        conditioner = ResidualMLP(1, 2, width=16, depth=1, condition_size=condition_size, rngs=rngs)
        conditioner.last.kernel[...] = scale * jax.random.normal(rngs(), (16, 2))
        layers.append(AffineCoupling(mask, conditioner))
    return Flow(StandardNormal((2,)), Chain(layers))


def narrow(noise=None):
    """A density that varies much within a unit, its data, and their exact log-probabilities."""
    flow = Flow(StandardNormal((2,)), Chain([Dequantize((2,), levels=4, noise=noise), Affine((2,), scale=2.0, shift=-4.0)]))
    x = jnp.array([[0, 1], [1, 1], [2, 1], [3, 2]])
    cdf = jax.scipy.stats.norm.cdf
    return flow, x, jnp.log(cdf(2 * (x + 1) - 4.0) - cdf(2 * x - 4.0)).sum(1)


@pytest.mark.parametrize("box", [(0.2, 0.7), (0.4, 0.5)], ids=["wide", "narrow"])
def test_density_of_learned_noise_is_that_of_its_samples(box):
    # The mean of 1/q over what falls into a box is the volume of the box.
    x = jnp.repeat(jnp.array([[0, 1], [3, 2]]), 40_000, axis=0)
    z, log_det, _ = Dequantize((2,), levels=4, noise=noise(scale=0.05)).forward_and_log_det(x, key=jax.random.key(0))
    within = ((z - x > box[0]) & (z - x < box[1])).all(1)
    weights = np.asarray(jnp.where(within, jnp.exp(log_det), 0)).reshape(2, -1)
    np.testing.assert_allclose(weights.mean(1), np.full(2, (box[1] - box[0]) ** 2), atol=5 * weights.std() / 200)
    assert weights.std() / 200 < 0.05 * weights.mean()


def test_learned_noise_tightens_the_bound():
    flow, x, exact = narrow(noise())
    many = jnp.repeat(x, 100, axis=0)
    graphdef, params, rest = nnx.split(flow, nnx.Param, ..., graph=False)
    optimizer = optax.adam(0.01)

    def step(carry, key):
        params, moments = carry
        slope = jax.grad(lambda params: -nnx.merge(graphdef, params, rest).log_prob(many, key=key).mean())(params)
        updates, moments = optimizer.update(slope, moments)
        return (optax.apply_updates(params, updates), moments), None

    keys = jax.random.split(jax.random.key(0), 300)
    (params, _), _ = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), keys))(params)
    uniform, _, _ = narrow()
    many = jnp.repeat(x, 4000, axis=0)
    slack = {}
    for name, fitted in [("uniform", uniform), ("learned", nnx.merge(graphdef, params, rest))]:
        bound = fitted.log_prob(many, key=jax.random.key(1)).reshape(len(x), -1)
        assert (bound.mean(1) <= exact + 4 * bound.std(1) / np.sqrt(4000)).all()
        slack[name] = float((exact - bound.mean(1)).mean())
    assert slack["uniform"] > 0.3
    assert slack["learned"] < 0.05


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32])
def test_learned_noise_inverts_exactly_and_knows_the_condition(dtype):
    learned = noise(condition_size=3, scale=5.0)  # strong enough to round to the ends of the interval
    x = (jnp.arange(20_000) * 7919 % 256).astype(dtype).reshape(-1, 2)
    dequantize = Dequantize((2,), levels=256, noise=learned)
    first, second = (dequantize.forward_and_log_det(x, condition=jnp.full((len(x), 1), c), key=jax.random.key(0)).value for c in (0.0, 1.0))
    np.testing.assert_array_equal(dequantize.inverse_and_log_det(first).value, x)
    assert first.dtype == jnp.float32
    assert not np.allclose(first, second)


def test_graph_free():
    nnx.split(Dequantize((2,), levels=3, noise=noise()), graph=False)
