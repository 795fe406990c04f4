"""Segmentation: the loss and accuracy of pixels, exact images, failed solves, pictures and clear errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from matplotlib.colors import to_rgb

from deqflow.implicit import Picard, fixed_point
from deqflow.registry import resolve
from deqflow.tasks import Classification, Segmentation
from deqflow.tasks.figures import BLUE, ORANGE
from deqflow.tasks.segmentation_figures import hardest, overlaid

KEY = jax.random.key(0)
TASK = Segmentation(classes=2, label_shape=(2, 3), levels=2)


class Brightness(nnx.Module):
    """The logit of class 1 is the solution of `z = z / 2 + a (x - 1/2)` in the first channel; with `a = 1e30` that overflows."""

    def __init__(self, a=1.0):
        self.a = a

    def solve(self, x, *, key=None, trace=False):
        u = self.a * (x[..., :1] - 0.5)
        return fixed_point(
            lambda z: 0.5 * z + u * (1 + self.a * z * z if self.a > 1 else 1), jnp.zeros_like(u), solver=Picard(max_steps=30), trace=trace
        )

    def readout(self, z):
        return jnp.concatenate([jnp.zeros_like(z), z], axis=-1)


@functools.partial(nnx.jit, static_argnums=0)
def evaluate(task, model, batch):
    return task.evaluate(model, batch, KEY)


def batch():
    """Two images, the second with one pixel whose label is not what its brightness says."""
    y = np.array([[[0, 1, 1], [0, 0, 1]], [[1, 1, 0], [0, 0, 0]]], np.int32)
    x = np.repeat(y[..., None], 3, axis=-1).astype(np.float32)
    y[1, 1, 2] = 1
    return {"x": jnp.asarray(x), "y": jnp.asarray(y)}


def test_loss_and_metrics_of_known_logits():
    """The solution is `2 (x - 1/2)`: a logit of 1 or -1 beside 0, right in 11 of 12 pixels."""
    rows = {name: np.asarray(value) for name, value in evaluate(TASK, Brightness(), batch()).items()}
    right, wrong = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    np.testing.assert_allclose(rows["loss"], [right, (5 * right + wrong) / 6], rtol=1e-3)
    np.testing.assert_allclose(rows["pixel_accuracy"], [1, 5 / 6], rtol=1e-6)
    np.testing.assert_array_equal(rows["exact"], [1, 0])
    summary = TASK.summarize(rows)
    assert {name: summary[name] for name in ("exact", "pixel_accuracy", "solver_unconverged")} == {
        "exact": 0.5,
        "pixel_accuracy": pytest.approx(11 / 12),
        "solver_unconverged": 0,
    }
    assert (summary[TASK.monitor], TASK.maximize) == (0.5, True)
    loss, numbers = TASK.loss(Brightness(), batch(), KEY)
    assert float(loss) == pytest.approx(summary["loss"], rel=1e-3)
    assert float(numbers["pixel_accuracy"]) == pytest.approx(11 / 12)


def test_an_image_whose_solve_failed_is_wrong():
    rows = evaluate(TASK, Brightness(a=1e30), batch())
    assert (rows["exact"] == 0).all()
    assert (rows["pixel_accuracy"] == 0).all()
    assert TASK.summarize({name: np.asarray(value) for name, value in rows.items()})["solver_failures"] == 1


def test_pictures(tmp_path):
    figures = TASK.pictures(Brightness(), {}, {name: np.asarray(part) for name, part in batch().items()}, KEY)
    assert set(figures) == {"hardest", "solver_residuals"}
    titles = [axes.get_title(loc="left") for axes in figures["hardest"].axes]
    assert titles == ["1 wrong", "exact"], "the image with the larger loss comes first"
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")


def test_right_pixels_are_blue_and_wrong_ones_orange():
    black = np.zeros((1, 4, 3), np.uint8)
    shown = overlaid(black, np.array([[0, 1, 1, 0]]), np.array([[0, 1, 0, 1]]), (0.0, 1.0))
    colours = [0.75 * 255 * np.array(to_rgb(colour)) for colour in ((0, 0, 0), BLUE, ORANGE, ORANGE)]
    np.testing.assert_allclose(shown[0], colours, atol=1)


def test_grey_images_are_drawn_too(tmp_path):
    grey, labels = np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 4, 4), int)
    hardest(grey, labels, labels, np.zeros(2), (0.0, 16.0)).savefig(tmp_path / "figure.png")


@pytest.mark.parametrize(("classes", "shape"), [(None, ()), (10, ()), (10, (4,))])
def test_data_without_a_label_for_every_pixel(classes, shape):
    with pytest.raises(ValueError, match="needs images with a label for every pixel"):
        Segmentation(classes=classes, label_shape=shape)


def test_classification_refuses_labels_of_pixels():
    with pytest.raises(ValueError, match=r"one label for each example.*shape \(2, 3\).*choose the task segmentation"):
        Classification(classes=2, label_shape=(2, 3))


def test_models_that_do_not_fit():
    with pytest.raises(ValueError, match="needs a model that solves an equation, such as deq_segmenter; Linear does not"):
        TASK.loss(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), batch(), KEY)
    with pytest.raises(ValueError, match=r"logits of shape .* = \(2, 2, 3, 7\), this model returned \(2, 2, 3, 2\)"):
        Segmentation(classes=7, label_shape=(2, 3)).loss(Brightness(), batch(), KEY)


def test_is_registered():
    assert resolve("task", "segmentation") is Segmentation
