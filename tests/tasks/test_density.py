"""Density estimation: units, standard errors, noise, failures that surface, and clear errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import ArnoldiQuadrature
from deqflow.models.residual_flow import ImplicitNormalizingFlow
from deqflow.registry import resolve
from deqflow.tasks import Density
from deqflow.tasks.density_figures import inverse_errors

KEY = jax.random.key(0)


class Gaussian(nnx.Module):
    """Independent normal distributions whose mean and scale are set from data."""

    def __init__(self, *shape, mean=0.0, scale=1.0):
        self.shape = shape
        self.mean = nnx.Param(jnp.full(shape, mean) if np.ndim(mean) == 0 else jnp.asarray(mean))
        self.scale = nnx.Param(jnp.full(shape, scale) if np.ndim(scale) == 0 else jnp.asarray(scale))

    def initialize(self, x, key):
        self.mean[...] = x.mean(axis=0)

    def log_prob(self, x, *, key=None):
        z = (x - self.mean[...]) / self.scale[...]
        terms = -0.5 * z**2 - jnp.log(self.scale[...]) - 0.5 * math.log(2 * math.pi)
        return terms.reshape(len(x), -1).sum(axis=1)

    def sample(self, key, n, *, temperature=1.0):
        return self.mean[...] + temperature * self.scale[...] * jax.random.normal(key, (n, *self.shape))


class Uniform(nnx.Module):
    """Every image of integer values is as likely as any other; the estimate of that is noisy, and the noise is recorded.

    Samples of a lower temperature are darker.
    """

    def __init__(self, shape, levels, noise=0.0):
        self.shape, self.levels, self.noise = shape, levels, noise
        self.last = nnx.Variable(jnp.zeros(()))

    def log_prob(self, x, *, key=None):
        if key is None:
            raise ValueError("needs a key")
        noise = self.noise * jax.random.normal(key, x.shape[:1])
        self.last[...] = noise.mean()
        return noise - math.prod(self.shape) * math.log(self.levels)

    def sample(self, key, n, *, temperature=1.0):
        return (temperature * jax.random.randint(key, (n, *self.shape), 0, self.levels)).astype(jnp.uint8)


class Broken(nnx.Module):
    """Finite for positive first entries only."""

    def log_prob(self, x, *, key=None):
        return jnp.log(x[:, 0])

    def sample(self, key, n, *, temperature=1.0):
        return jnp.ones((n, 2))


def rows_of(task, model, x):
    rows = jax.jit(lambda x: task.evaluate(model, {"x": x}, KEY))(x)
    return {name: np.asarray(value) for name, value in rows.items()}


def test_loss_is_in_nats_per_dimension_and_reports_nats():
    task, x = Density(), jax.random.normal(jax.random.key(1), (64, 5))
    loss, numbers = task.loss(Gaussian(5), {"x": x}, KEY)
    expected = 0.5 * np.sum(np.square(x), axis=1).mean() + 2.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(numbers["nats"], expected, rtol=1e-6)
    np.testing.assert_allclose(loss, expected / 5, rtol=1e-6)
    assert (task.monitor, task.maximize) == ("nats", False)


def test_a_uniform_model_of_integers_needs_log2_levels_bits():
    task, x = Density(levels=17), jnp.zeros((8, 4, 4, 1), jnp.uint8)
    loss, numbers = task.loss(Uniform((4, 4, 1), 17), {"x": x}, KEY)
    np.testing.assert_allclose(numbers["bits_per_dim"], math.log2(17), rtol=1e-6)
    np.testing.assert_allclose(loss, math.log(17), rtol=1e-6)
    summary = task.summarize(rows_of(task, Uniform((4, 4, 1), 17), x))
    assert summary == {"bits_per_dim": pytest.approx(math.log2(17), rel=1e-6), "standard_error": pytest.approx(0, abs=1e-6)}
    assert task.monitor in summary


def test_gap_and_standard_error_of_real_data():
    entropy = 1 + math.log(2 * math.pi)
    task, x = Density(entropy=entropy), jax.random.normal(jax.random.key(2), (4096, 2))
    summary = task.summarize(rows_of(task, Gaussian(2, scale=2.0), x))
    divergence = 2 * (math.log(2) - 0.5 + 0.125)  # KL(N(0, 1) || N(0, 4)) in each of two dimensions
    assert summary["gap"] == pytest.approx(summary["nats"] - entropy)
    assert summary["standard_error"] == pytest.approx(0.25 / math.sqrt(4096), rel=0.1)  # the variance of z²/8, twice
    assert abs(summary["gap"] - divergence) < 4 * summary["standard_error"]


def test_copies_average_the_noise_of_the_model_and_say_how_much_is_left():
    levels, shape, noise, n = 4, (2, 2, 1), 0.5, 400
    unit = 4 * math.log(2)
    x = jnp.zeros((n, *shape), jnp.uint8)
    for copies in (1, 16):
        task = Density(levels=levels, copies=copies)
        rows = rows_of(task, Uniform(shape, levels, noise), x)
        expected = noise / unit / math.sqrt(copies)
        assert rows["bits_per_dim"].std() == pytest.approx(expected, rel=0.15)
        summary = task.summarize(rows)
        assert abs(summary["bits_per_dim"] - 2) < 4 * expected / math.sqrt(n)
        if copies > 1:
            assert summary["noise_error"] == pytest.approx(expected / math.sqrt(n), rel=0.1)
        else:
            assert "noise_error" not in summary


def test_examples_without_a_finite_likelihood_surface():
    task = Density()
    x = jnp.array([[1.0, 0], [1.0, 0], [0.0, 0], [-1.0, 0]])
    summary = task.summarize(rows_of(task, Broken(), x))
    assert math.isnan(summary["nats"])
    assert summary["failures"] == 0.5
    summary = task.summarize(rows_of(task, Broken(), x[:3]))
    assert summary["nats"] == math.inf
    assert summary["failures"] == pytest.approx(1 / 3)
    assert math.isnan(summary["standard_error"])


def test_opposite_infinities_do_not_cancel():
    assert math.isnan(Density().summarize({"nats": np.array([np.inf, -np.inf, 1.0])})["nats"])


def test_initialize_reaches_a_model_that_asks_for_it_and_no_other():
    model, x = Gaussian(2), jnp.array([[1.0, 2.0], [3.0, 6.0]])
    Density().initialize(model, {"x": x}, KEY)
    np.testing.assert_allclose(model.mean[...], [2.0, 4.0])
    Density(levels=4).initialize(Uniform((2, 2, 1), 4), {"x": x}, KEY)


def test_mistakes_have_one_clear_message():
    with pytest.raises(ValueError, match="copies must be >= 1, got 0"):
        Density(copies=0)
    with pytest.raises(ValueError, match="log_prob and sample, such as realnvp"):
        Density().loss(nnx.List([]), {"x": jnp.ones((2, 2))}, KEY)

    class Total(Gaussian):
        def log_prob(self, x, *, key=None):
            return jnp.zeros(())

    with pytest.raises(ValueError, match=r"shape \(3,\); this model returned \(\)"):
        Density().loss(Total(2), {"x": jnp.ones((3, 2))}, KEY)


def test_picture_of_points_in_the_plane_shows_the_density_where_it_is():
    task, model = Density(entropy=1.0), Gaussian(2, mean=[3.0, -1.0], scale=[0.5, 0.2])
    x = model.sample(jax.random.key(3), 500)
    figures = task.pictures(model, rows_of(task, model, x), {"x": np.asarray(x[:32])}, KEY)
    assert list(figures) == ["density"]
    data, samples, density = figures["density"].axes[:3]
    assert "500 test points" in data.get_title()
    assert len(samples.lines[0].get_xdata()) == 500
    np.testing.assert_allclose(np.mean(samples.lines[0].get_xydata(), axis=0), [3.0, -1.0], atol=0.1)
    left, right, bottom, top = density.images[0].get_extent()
    values = density.images[0].get_array()
    side = len(values)
    cell = (right - left) * (top - bottom) / side**2
    assert values.sum() * cell == pytest.approx(1, abs=2e-3)
    columns = left + (np.arange(side) + 0.5) / side * (right - left)
    lines = bottom + (np.arange(side) + 0.5) / side * (top - bottom)
    assert (values.sum(axis=0) * columns).sum() * cell == pytest.approx(3, abs=0.02)
    assert (values.sum(axis=1) * lines).sum() * cell == pytest.approx(-1, abs=0.02)


def test_picture_of_a_density_that_is_not_finite_everywhere_says_so():
    task, x = Density(), np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    figure = task.pictures(Broken(), rows_of(task, Broken(), x), {"x": x}, KEY)["density"]
    assert "not finite" in figure.axes[2].get_title()


def test_picture_of_images_and_of_plain_vectors():
    task, model = Density(levels=4), Uniform((4, 3, 1), 4)
    x = np.zeros((70, 4, 3, 1), np.uint8)
    figures = task.pictures(model, rows_of(task, model, x), {"x": x}, KEY)
    assert list(figures) == ["samples"]
    panels = {axes.get_title(): axes.images[0].get_array() for axes in figures["samples"].axes}
    assert list(panels) == ["Test images", "Samples of the model", "Samples at temperature 0.7"]
    hot, cold = (panels[title][:4, :3] for title in list(panels)[1:])  # the same draw, of values of 0 .. 3
    assert len(np.unique(hot)) > 1
    np.testing.assert_allclose(cold, np.floor(0.7 * 3 * hot) / 3)
    x = np.zeros((5, 7), np.float32)
    assert Density().pictures(Gaussian(7), rows_of(Density(), Gaussian(7), x), {"x": x}, KEY) == {}


class Contracting(Gaussian):
    """A model of three maps, whose inverse misses by a little, or loses an example altogether."""

    def lipschitz_bounds(self):
        return [0.5, 0.98, np.inf]

    def inverse_error(self, x, *, key=None):
        return jnp.where(jnp.arange(len(x)) == 0, jnp.nan, 1e-5 + 0 * x[:, 0])


def test_pictures_of_bounds_by_layer_and_of_the_inverse_error(tmp_path):
    x = np.zeros((6, 7), np.float32)
    figures = Density().pictures(Contracting(7), rows_of(Density(), Gaussian(7), x), {"x": x}, KEY)
    assert list(figures) == ["lipschitz_bounds", "inverse_error"]
    (bounds,), (errors,) = figures["lipschitz_bounds"].axes, figures["inverse_error"].axes
    np.testing.assert_allclose([bar.get_height() for bar in bounds.patches], [0.5, 0.98, bounds.get_ylim()[1]])
    assert bounds.get_title() == "largest inf"
    assert sum(bar.get_height() for bar in errors.patches) == 5
    assert errors.get_title() == "median 1.0e-05, largest 1.0e-05, 1 not finite"
    lost = inverse_errors(np.full(3, np.nan))
    for index, figure in enumerate([*figures.values(), lost]):
        figure.savefig(tmp_path / f"{index}.png")


def test_registered():
    assert resolve("task", "density") is Density


def test_solves_estimates_and_bounds_are_reported():
    """Of an implicit flow in training, and of the whole split in evaluation."""
    estimator = ArnoldiQuadrature(steps=2, probes=2)
    model = ImplicitNormalizingFlow(blocks=2, width=4, depth=1, bound=0.9, log_det=estimator, input_shape=(2,), rngs=nnx.Rngs(0))
    batch = {"x": jax.random.normal(KEY, (8, 2))}
    task = Density(copies=2)
    model.train()
    _, numbers = nnx.jit(task.loss)(model, batch, KEY)
    assert {"nats", "log_det_error", "solver_steps", "solver_max_steps", "solver_residual", "solver_failures"} == numbers.keys()
    assert 0 < numbers["log_det_error"] < 1
    assert 1 <= numbers["solver_steps"] <= numbers["solver_max_steps"]
    assert numbers["solver_residual"] <= 1e-5
    assert numbers["solver_failures"] == 0
    model.eval()
    rows = {name: np.asarray(column) for name, column in nnx.jit(task.evaluate)(model, batch, KEY).items()}
    assert all(len(column) == 8 for column in rows.values())
    summary = task.summarize(rows)
    assert summary["solver_unconverged"] == 0
    assert summary["residual_max"] < 1e-5
    # Two copies of two probes each: as far as few numbers can tell, the error seen between copies is the one that probes show.
    assert 0.2 < summary["log_det_error"] / summary["noise_error"] < 5
