"""Pictures of a classifier: the right numbers in the right places."""

import numpy as np
import pytest

from deqflow.tasks.classification_figures import confusion_matrix, least_certain, solver_residuals

NAMES = ("ant", "bee", "cat")


def test_confusion_matrix_counts_true_by_row_and_predicted_by_column(tmp_path):
    figure = confusion_matrix(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 2, 1, 2, 2, 0]), NAMES)
    texts = {tuple(int(v) for v in text.get_position()): text.get_text() for text in figure.axes[0].texts}
    assert texts == {(0, 0): "1", (2, 0): "1", (1, 1): "1", (2, 2): "2", (0, 2): "1"}  # (column, row)
    assert figure.axes[0].get_title() == "Test accuracy 0.6667 (4 of 6)"
    figure.savefig(tmp_path / "figure.png")


def test_confusion_matrix_of_many_classes_has_no_unreadable_text(tmp_path):
    labels = np.arange(200) % 100
    figure = confusion_matrix(labels, labels, tuple(map(str, range(100))))
    assert not figure.axes[0].texts
    figure.savefig(tmp_path / "figure.png")


def test_least_certain_come_first_and_errors_are_marked(tmp_path):
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    images = np.zeros((3, 4, 4, 1), np.uint8)
    figure = least_certain(images, np.array([0, 0, 2]), probabilities, NAMES, (0.0, 16.0))
    titles = [(axes.get_title(loc="left"), axes.get_children()) for axes in figure.axes]
    assert [title for title, _ in titles] == ["bee (50%)\nis ant (20%)", "cat (70%)", "ant (90%)"]
    figure.savefig(tmp_path / "figure.png")


def test_solver_residuals_hold_the_last_value_of_a_stopped_sample(tmp_path):
    nan = np.nan
    trace = np.array([[1.0, 1.0, 1.0], [1e-2, 1e-1, 1e-1], [nan, 1e-2, 1e-2], [nan, nan, 1e-3], [nan, nan, nan]])
    figure = solver_residuals(trace, 1e-2)
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1.0, 1e-1, 1e-2, 1e-2])
    assert axes.lines[1].get_ydata()[0] == 1e-2
    assert "median 3 steps" in axes.get_title()
    figure.savefig(tmp_path / "figure.png")


def test_solver_residuals_are_drawn_where_the_solver_looks():
    trace = np.full((6, 2), np.nan)
    trace[[1, 3]], trace[5, 0] = [[1.0, 1e-1], [1e-1, 1e-3]], 1e-2
    axes = solver_residuals(trace, None).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [2, 4, 6])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.55, 0.0505, 0.0055])
    assert "median 5 steps" in axes.get_title()


@pytest.mark.parametrize("value", [0.0, np.inf], ids=["exact", "diverged"])
def test_solver_residuals_draw_what_a_logarithmic_axis_cannot_hold(value, tmp_path):
    solver_residuals(np.array([[1.0, value], [0.1, np.nan]]), None).savefig(tmp_path / "figure.png")
