import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqflow.flows import ActNorm, Chain
from deqflow.models.realnvp import RealNVP


def points(**options):
    return RealNVP(**{"couplings": 4, "width": 16, "depth": 1, "input_shape": (2,), "rngs": nnx.Rngs(0)} | options)


def images(**options):
    return points(**{"couplings": 2, "input_shape": (4, 4, 1), "levels": 17} | options)


def random_images(count, shape=(4, 4, 1), seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 17, (count, *shape)), jnp.uint8)


def moons(count, seed=0):
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, np.pi, count)
    side = rng.choice([-1.0, 1.0], count)
    x = np.stack([side * (np.cos(angle) - 0.5), side * (np.sin(angle) - 0.25)], axis=1)
    return jnp.asarray(x + 0.1 * rng.normal(size=x.shape), jnp.float32)


def fit(model, x, steps):
    """A few steps of Adam; the model as it was trained, and the losses."""
    model.initialize(x, jax.random.key(1))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, key):
        loss, gradient = jax.value_and_grad(lambda p: -nnx.merge(graphdef, p, rest).log_prob(x, key=key).mean())(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for index in range(steps):
        params, state, loss = step(params, state, jax.random.key(index))
        losses.append(float(loss))
    return nnx.merge(graphdef, params, rest), losses


@pytest.fixture(scope="module")
def trained_images():
    """A model with dropout after a few steps, its losses, and its data."""
    x = jnp.clip(random_images(64), 3, 12)
    return *fit(images(dropout=0.1), x, steps=30), x


def test_points_train_and_the_density_integrates_to_one():
    x = moons(512)
    model, losses = fit(points(), x, steps=200)
    assert losses[-1] < losses[0] - 0.3
    edge = jnp.linspace(-8, 8, 401)
    grid = jnp.stack(jnp.meshgrid(edge, edge), axis=-1).reshape(-1, 2)
    mass = jnp.exp(model.log_prob(grid)) * (edge[1] - edge[0]) ** 2
    np.testing.assert_allclose(mass.sum(), 1.0, atol=1e-3)
    np.testing.assert_allclose(model.log_prob(moons(2000, seed=1)).mean(), -losses[-1], atol=0.3)
    samples = model.sample(jax.random.key(0), 4000)
    for function in (jnp.tanh, lambda x: x > 0.3):  # the samples follow the density that is evaluated
        np.testing.assert_allclose(function(samples).mean(0), (mass[:, None] * function(grid)).sum(0), atol=0.05)


def test_probabilities_of_all_small_images_sum_to_one():
    # E_u exp(log_prob) is P(x) itself, not its bound: over the nine images of two pixels and three levels it sums to the mass
    # that the model puts on [0, 3]^2, all but what the logit's margin leaves outside.
    corners = jnp.asarray([[[a], [b]] for a in range(3) for b in range(3)], jnp.uint8)[:, None]
    x = jnp.repeat(corners, 4000, axis=0)
    model, _ = fit(points(input_shape=(1, 2, 1), levels=3), x[::400], steps=20)
    probabilities = jnp.exp(model.log_prob(x, key=jax.random.key(0))).reshape(9, -1).mean(1)
    np.testing.assert_allclose(probabilities.sum(), 1.0, atol=0.02)


def test_images_train_and_samples_look_like_raw_data(trained_images):
    model, losses, _ = trained_images
    assert losses[-1] < losses[0] - 1
    model.eval()
    samples = model.sample(jax.random.key(0), 10)
    assert samples.shape == (10, 4, 4, 1)
    np.testing.assert_array_equal(samples, np.floor(samples))
    assert samples.min() >= 0
    assert samples.max() <= 16
    assert np.isfinite(model.log_prob(samples, key=jax.random.key(0))).all()


def test_initialisation_standardises_the_latent_and_spreads_what_the_couplings_see():
    x = random_images(500)
    model = images(initial_log_scale=1.5)
    model.initialize(x, jax.random.key(0))
    bijector = model.flow.bijector
    latent = bijector.forward_and_log_det(x.reshape(500, -1), key=jax.random.key(0)).value
    np.testing.assert_allclose(latent.mean(0), np.zeros(16), atol=0.02)
    np.testing.assert_allclose(latent.std(0), np.ones(16), atol=0.02)
    assert isinstance(bijector, Chain)
    last = bijector.layers[-1]
    assert isinstance(last, ActNorm)
    np.testing.assert_allclose(last.log_scale[...], np.full(16, -1.5), atol=0.02)


@pytest.mark.parametrize("direction", ["log_prob", "sample"])
def test_pure_functions_of_the_split_model(direction):
    model = images()
    model.eval()
    x = random_images(4)
    calls = {
        "log_prob": lambda m: m.log_prob(x, key=jax.random.key(3)),
        "sample": lambda m: m.sample(jax.random.key(3), 4),
    }
    graphdef, state = nnx.split(model, graph=False)
    run = jax.jit(lambda state: calls[direction](nnx.merge(graphdef, state)))
    np.testing.assert_allclose(run(state), calls[direction](model), rtol=1e-5)


def test_every_parameter_has_a_gradient(trained_images):
    model, _, x = trained_images  # in a new model the last layers of the conditioners are zero and hide the others
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    gradients = jax.jit(jax.grad(lambda p: nnx.merge(graphdef, p, rest).log_prob(x, key=jax.random.key(0)).mean()))(params)
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert (np.asarray(gradient) != 0).any(), path


def test_dropout_and_noise_follow_the_key(trained_images):
    model, _, x = trained_images
    model.train()
    a, again, b = (model.log_prob(x, key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(a, again)
    assert not np.allclose(a, b)
    with pytest.raises(ValueError, match="pass key"):
        model.log_prob(x)


def test_condition():
    model = points(condition_size=3)
    x, condition = moons(6), jnp.ones((6, 3))
    model.initialize(x, jax.random.key(0), condition=condition)
    assert model.log_prob(x, condition=condition).shape == (6,)
    assert model.sample(jax.random.key(0), 6, condition=condition).shape == (6, 2)
    with pytest.raises(ValueError, match="condition with 3 features, got none"):
        model.log_prob(x)


def test_bad_data_are_answered_with_nan_in_their_place_only():
    x = random_images(4).astype(jnp.float32)
    x = x.at[1, 0, 0, 0].set(jnp.nan).at[2, 1, 1, 0].set(17.0)
    log_prob = images().log_prob(x, key=jax.random.key(0))
    np.testing.assert_array_equal(np.isnan(log_prob), [False, True, True, False])
    log_prob = points().log_prob(jnp.array([[0.0, np.nan], [0.0, 1.0]]))
    np.testing.assert_array_equal(np.isnan(log_prob), [True, False])


def test_wrong_shapes_and_ranges_are_refused():
    with pytest.raises(ValueError, match=r"two dimensions or more, got examples of shape \(1,\)"):
        points(input_shape=(1,))
    with pytest.raises(ValueError, match=r"expected data of shape \(batch, 2\), got \(5, 3\)"):
        points().log_prob(jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"expected data of shape \(batch, 4, 4, 1\), got \(5, 16\)"):
        images().initialize(jnp.zeros((5, 16)), jax.random.key(0))
    with pytest.raises(ValueError, match="couplings must be >= 1, got 0"):
        points(couplings=0)
    with pytest.raises(ValueError, match="dropout must be >= 0 and < 1, got 1.0"):
        points(dropout=1.0)
    with pytest.raises(ValueError, match="levels must be 2 or more"):
        images(levels=1)
