"""What figures share: mosaics, grids of points and views."""

import subprocess
import sys

import numpy as np
import pytest

from deqflow.tasks.density_figures import density_beside_data, grid_points, view
from deqflow.tasks.figures import is_image, panels, show_grid

SHAPES = {(8, 8, 1): True, (32, 32, 3): True, (8, 8, 2): False, (2,): False, (1, 8, 1): False, (8, 8): False}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_a_picture(shape):
    assert is_image(shape) == SHAPES[shape]


@pytest.mark.parametrize("channels", [1, 3])
def test_mosaic_places_pictures_row_by_row(channels):
    images = np.arange(5.0)[:, None, None, None] * np.ones((5, 4, 6, channels))
    _, (axes,) = panels(columns=1)
    show_grid(axes, images, 0, 8)
    mosaic = np.asarray(axes.images[0].get_array()).reshape(2 * 4 + 1, 3 * 6 + 2, channels)[..., 0]
    np.testing.assert_allclose(mosaic[0, [0, 7, 14]], np.array([0, 1, 2]) / 8)
    np.testing.assert_allclose(mosaic[5, [0, 7]], np.array([3, 4]) / 8)
    assert mosaic[4, 0] == mosaic[0, 6] == mosaic[8, 19] == 1  # gaps and the place that is left are white


def test_values_outside_the_limits_are_cut():
    _, (axes,) = panels(columns=1)
    show_grid(axes, np.array([-5.0, 99.0]).reshape(2, 1, 1, 1) * np.ones((2, 2, 2, 1)), 0, 16)
    mosaic = np.asarray(axes.images[0].get_array())
    assert mosaic[0, 0] == 0
    assert mosaic[0, 3] == 1


def test_view_is_a_square_around_the_points_and_survives_a_single_one():
    left, right, bottom, top = view(np.array([[0.0, 0.0], [4.0, 1.0]]))
    assert right - left == pytest.approx(top - bottom)
    assert left < 0 < 4 < right
    assert (left + right) / 2 == pytest.approx(2)
    assert (bottom + top) / 2 == pytest.approx(0.5)
    left, right, *_ = view(np.array([[3.0, 3.0]]))
    assert left < 3 < right


def test_grid_points_are_cell_centres_from_the_bottom_left():
    np.testing.assert_allclose(grid_points((0.0, 2.0, 10.0, 14.0), 2), [[0.5, 11], [1.5, 11], [0.5, 13], [1.5, 13]])


def test_a_density_that_is_zero_or_infinite_everywhere_is_still_drawn(tmp_path):
    points = np.zeros((3, 2))
    for value in (-np.inf, np.nan, 1e4):
        figure = density_beside_data(points, np.full((4, 4), value), points, (-1.0, 1.0, -1.0, 1.0), float("inf"), None)
        figure.savefig(tmp_path / "figure.png")


def test_drawing_needs_no_pyplot():
    code = "import sys, deqflow.tasks, deqflow.tasks.density_figures as f; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
