"""Classification: cross entropy, accuracy, the statistics of implicit models, and clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqflow.implicit import Anderson, Status, fixed_point
from deqflow.registry import resolve
from deqflow.tasks import Classification
from deqflow.tasks.classification import Correction

KEY = jax.random.key(0)
SOLVES = []


class Linear(nnx.Module):
    """Logits that are a linear map of the flattened input."""

    def __init__(self, features, classes):
        self.layer = nnx.Linear(features, classes, rngs=nnx.Rngs(1))

    def __call__(self, x, *, key=None):
        return self.layer(x.reshape(len(x), -1).astype(jnp.float32))


class Fixed(nnx.Module):
    """Returns its input as logits."""

    def __call__(self, x, *, key=None):
        return x


class Equilibrium(nnx.Module):
    """z = tanh(z W + x), read out linearly; counts its solves."""

    def __init__(self, gain=0.1, max_steps=30):
        self.weight = nnx.Param(gain * jax.random.normal(jax.random.key(2), (4, 4)))
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(3))
        self.solver = Anderson(rtol=1e-4, max_steps=max_steps)

    def solve(self, x, *, key=None, trace=False, states=()):
        SOLVES.append(self)
        f = lambda z: jnp.tanh(z @ self.weight[...] + x)  # noqa: E731
        return fixed_point(f, jnp.zeros_like(x), solver=self.solver, trace=trace, states=states)

    def readout(self, z):
        return self.head(z)

    def __call__(self, x, *, key=None):
        return self.readout(self.solve(x, key=key).value)


def batch_of(n=12, features=(4,), classes=3):
    x = jax.random.normal(jax.random.key(4), (n, *features))
    return {"x": x, "y": jax.random.randint(jax.random.key(5), (n,), 0, classes)}


def rows_of(task, model, batch):
    rows = jax.jit(lambda x, y: task.evaluate(model, {"x": x, "y": y}, KEY))(batch["x"], batch["y"])
    return {name: np.asarray(value) for name, value in rows.items()} | {"y": np.asarray(batch["y"])}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_cross_entropy_of_optax(smoothing):
    task, model, batch = Classification(classes=3, label_smoothing=smoothing), Linear(4, 3), batch_of()
    target = optax.smooth_labels(jax.nn.one_hot(batch["y"], 3), smoothing)

    def reference(model):
        return optax.softmax_cross_entropy(model(batch["x"]), target).mean()

    def ours(model):
        return task.loss(model, batch, KEY)[0]

    (value, gradient), (expected, expected_gradient) = nnx.value_and_grad(ours)(model), nnx.value_and_grad(reference)(model)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), gradient, expected_gradient)


def test_evaluation_agrees_with_the_loss():
    task, model, batch = Classification(classes=3, label_smoothing=0.2), Linear(4, 3), batch_of()
    loss, numbers = task.loss(model, batch, KEY)
    summary = task.summarize(rows_of(task, model, batch))
    assert summary == {"accuracy": pytest.approx(float(numbers["accuracy"])), "loss": pytest.approx(float(loss), rel=1e-6)}
    assert (task.monitor in summary, task.maximize) == (True, True)


def test_half_precision_logits_are_summed_in_float32():
    task = Classification(classes=2)
    logits = jnp.array([[300.0, 0.0], [0.0, 1.0]], jnp.bfloat16)
    loss, _ = task.loss(Fixed(), {"x": logits, "y": jnp.array([1, 1])}, KEY)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, (300.0 + np.log1p(np.exp(-1))) / 2, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_logit_is_never_right_and_never_averaged_away(bad):
    task = Classification(classes=2)
    batch = {"x": jnp.array([[2.0, bad], [3.0, 0.0]]), "y": jnp.array([1 if bad == np.inf else 0, 0])}
    summary = task.summarize(rows_of(task, Fixed(), batch))
    assert summary["accuracy"] == 0.5
    assert bad == -np.inf or not np.isfinite(summary["loss"])


def test_a_label_out_of_range_does_not_pass_for_a_class():
    loss, _ = Classification(classes=2).loss(Fixed(), {"x": jnp.ones((2, 2)), "y": jnp.array([0, 2])}, KEY)
    assert np.isnan(loss)


def test_an_implicit_model_is_evaluated_with_its_solver_statistics_from_one_solve():
    task, model, batch = Classification(classes=3), Equilibrium(), batch_of()
    SOLVES.clear()
    rows = task.evaluate(model, batch, KEY)
    assert len(SOLVES) == 1
    np.testing.assert_array_equal(rows["prediction"], model(batch["x"]).argmax(axis=-1))
    stats = model.solve(batch["x"]).stats
    np.testing.assert_array_equal(rows["residual"], stats.relative_residual)
    np.testing.assert_array_equal(rows["steps"], stats.steps)
    summary = task.summarize({name: np.asarray(value) for name, value in rows.items()})
    assert 0 < summary["residual_median"] <= summary["residual_max"] <= 1e-4
    assert 1 < summary["solver_steps"] < 30
    assert summary["solver_unconverged"] == summary["solver_failures"] == 0


def test_an_example_whose_solve_failed_is_wrong():
    task, model, batch = Classification(classes=3), Equilibrium(), batch_of()
    predicted = np.asarray(task.evaluate(model, batch, KEY)["prediction"])
    model.weight[...] = jnp.nan
    rows = task.evaluate(model, {**batch, "y": jnp.asarray(predicted)}, KEY)
    assert (np.asarray(rows["status"]) == Status.DIVERGED).all()
    assert not rows["correct"].any()


def test_summary_counts_the_solves_that_went_wrong():
    rows = {
        "loss": np.ones(5, np.float32),
        "correct": np.ones(5, np.float32),
        "residual": np.array([1e-5, 2e-5, 1e-2, np.inf, np.nan], np.float32),
        "steps": np.array([4, 6, 30, 10, 0]),
        "status": np.array([Status.CONVERGED, Status.CONVERGED, Status.STEP_LIMIT, Status.DIVERGED, Status.INVALID_INPUT]),
    }
    summary = Classification(classes=2).summarize(rows)
    assert summary["residual_median"] == pytest.approx(1e-2)
    assert summary["residual_max"] == np.inf
    assert summary["solver_steps"] == 10
    assert summary["solver_unconverged"] == pytest.approx(0.6)
    assert summary["solver_failures"] == pytest.approx(0.4)


ERRORS = {
    "no labels in the data": (lambda: Classification(), "no labels|have none"),
    "smoothing": (lambda: Classification(classes=2, label_smoothing=1.0), "label_smoothing must be >= 0 and < 1, got 1.0"),
    "no labels in the batch": (lambda: Classification(classes=3).loss(Linear(4, 3), {"x": jnp.ones((2, 4))}, KEY), "labels `y`"),
    "other classes": (lambda: Classification(classes=5).loss(Linear(4, 3), batch_of(2), KEY), r"\(2, 5\).*returned \(2, 3\)"),
    "images out": (lambda: Classification(classes=4).evaluate(Fixed(), batch_of(2, (2, 4)), KEY), r"\(2, 4\).*returned \(2, 2, 4\)"),
    "no classifier": (lambda: Classification(classes=3).loss(nnx.List([]), batch_of(2), KEY), "maps x to logits"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_have_one_clear_message(case):
    make, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_pictures_of_an_explicit_model_on_images():
    task, model = Classification(classes=3, levels=17), Linear(16, 3)
    batch = batch_of(20, (4, 4, 1))
    batch["x"] = jnp.clip(8 + 8 * batch["x"], 0, 16).astype(jnp.uint8)
    rows = rows_of(task, model, batch)
    mask = (np.arange(20) < 15).astype(np.float32)
    figures = task.pictures(model, rows, {**{name: np.asarray(value) for name, value in batch.items()}, "mask": mask}, KEY)
    assert sorted(figures) == ["confusion_matrix", "least_certain"]
    assert "15 test images" in figures["least_certain"].get_suptitle()


def test_pictures_of_an_implicit_model():
    task, model, batch = Classification(classes=3), Equilibrium(), batch_of()
    figures = task.pictures(model, rows_of(task, model, batch), {name: np.asarray(value) for name, value in batch.items()}, KEY)
    assert sorted(figures) == ["confusion_matrix", "solver_residuals"]
    median = figures["solver_residuals"].axes[0].lines[0].get_ydata()
    assert median[-1] < 1e-4 < median[0]
    assert figures["solver_residuals"].axes[0].lines[1].get_ydata()[0] == 1e-4


def test_registered():
    assert resolve("task", "classification") is Classification


def test_the_correction_is_the_loss_of_early_states():
    model, batch = Equilibrium(), batch_of()
    plain, corrected = Classification(classes=3), Classification(classes=3, correction=Correction(states=(0, 2), weight=0.3))
    f = lambda z: jnp.tanh(z @ model.weight[...] + batch["x"])  # noqa: E731
    early = [f(jnp.zeros_like(batch["x"])), f(fixed_point(f, jnp.zeros_like(batch["x"]), solver=model.solver, budget=2).value)]
    losses = [optax.softmax_cross_entropy_with_integer_labels(model.readout(z), batch["y"]).mean() for z in early]
    expected = plain.loss(model, batch, KEY)[0] + 0.3 * (losses[0] + losses[1]) / 2
    np.testing.assert_allclose(corrected.loss(model, batch, KEY)[0], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="task.correction needs a model that solves an equation"):
        corrected.loss(Linear(4, 3), batch, KEY)
    for bad in ((), (3, 2)):
        with pytest.raises(ValueError, match="correction.states must be numbers of solver steps in increasing order"):
            Correction(states=bad)
