"""Learning curves: the panels that the numbers call for, and nothing hidden."""

import math

import pytest

from deqflow.runs.curves import learning_curves


def rows(**numbers):
    """A training row every 10 steps and a validation row every 50, all with the same names."""
    train = [{"step": s, "split": "train", **{name: f(s) for name, f in numbers.items()}} for s in range(10, 201, 10)]
    validation = [{"step": s, "split": "validation", **{name: f(s) for name, f in numbers.items()}} for s in range(50, 201, 50)]
    return train + validation + [{"step": 200, "split": "test", **{name: f(200) for name, f in numbers.items()}}]


def decay(step):
    return math.exp(-step / 50) + 0.1


SOLVER = dict.fromkeys(["solver_steps", "solver_residual", "residual_median", "residual_max"], decay)
PANELS = {
    "explicit classifier": ({"loss": decay, "accuracy": decay}, ["loss", "accuracy"]),
    "implicit classifier": ({"loss": decay, "accuracy": decay, **SOLVER}, ["loss", "accuracy", "solver steps", "relative residual"]),
    "density": ({"loss": decay, "nats": decay, "gap": decay}, ["negative log-likelihood (nats)"]),
    "images": ({"loss": decay, "bits_per_dim": decay}, ["negative log-likelihood (bits/dim)"]),
    "something else": ({"loss": lambda s: -decay(s), "gradient_norm": decay}, ["loss"]),
}


@pytest.mark.parametrize("case", PANELS)
def test_panels_follow_the_numbers(case, tmp_path):
    numbers, labels = PANELS[case]
    figure = learning_curves(rows(**numbers))
    assert [axes.get_ylabel() for axes in figure.axes] == labels
    figure.savefig(tmp_path / "curves.png")


def test_each_split_is_a_line_and_the_test_a_point_with_its_value():
    axes = learning_curves(rows(loss=decay)).axes[0]
    assert [(line.get_label(), len(line.get_xdata())) for line in axes.lines] == [
        ("train", 20),
        ("validation", 4),
        (f"test: {decay(200):.4g}", 1),
    ]


def test_the_test_stands_at_the_step_whose_parameters_were_tested():
    axes = learning_curves([*rows(loss=decay)[:-1], {"step": 200, "split": "test", "loss": 0.5, "selected_step": 150}]).axes[0]
    assert (axes.lines[-1].get_xdata()[0], axes.lines[-1].get_ydata()[0]) == (150, 0.5)


def test_loss_is_logarithmic_unless_it_is_negative():
    assert learning_curves(rows(loss=decay)).axes[0].get_yscale() == "log"
    assert learning_curves(rows(loss=lambda s: -decay(s))).axes[0].get_yscale() == "linear"


def test_the_later_differences_can_be_seen_and_nothing_late_is_cut():
    axes = learning_curves(rows(nats=lambda s: 1000.0 if s == 10 else 3 + decay(s))).axes[0]
    low, high = axes.get_ylim()
    assert high < 10
    assert low < 3 + decay(200) < high


def test_numbers_that_are_not_finite_are_marked(tmp_path):
    figure = learning_curves(rows(loss=lambda s: math.nan if s == 100 else math.inf if s == 150 else decay(s)))
    axes = figure.axes[0]
    assert sorted(line.get_xdata()[0] for line in axes.lines if line.get_color() == "red") == [100, 150]
    assert axes.get_yscale() == "log"
    figure.savefig(tmp_path / "curves.png")


def test_a_single_row_and_a_run_of_nothing_but_nan_are_drawn(tmp_path):
    learning_curves([{"step": 1, "split": "train", "loss": 1.0}]).savefig(tmp_path / "one.png")
    learning_curves(rows(loss=lambda s: math.nan, accuracy=lambda s: 0.0)).savefig(tmp_path / "nan.png")


def test_no_curve_is_an_error():
    with pytest.raises(ValueError, match="no curve to draw"):
        learning_curves([{"step": 1, "split": "train", "gradient_norm": 1.0}])


def test_a_model_that_overfits_stays_in_the_picture(tmp_path):
    """The training gets better while the validation gets worse, to the end; the test is worst of all."""
    train = [{"step": s, "split": "train", "nats": 3 - s / 1000} for s in range(10, 2001, 10)]
    validation = [{"step": s, "split": "validation", "nats": 3 + (s / 500) ** 3} for s in range(200, 2001, 200)]
    figure = learning_curves([*train, *validation, {"step": 2000, "split": "test", "nats": 80.0}])
    figure.savefig(tmp_path / "curves.png")  # warns if the layout has no room
    low, high = figure.axes[0].get_ylim()
    assert low < 1
    assert high > 80


def test_a_single_training_step_that_stands_out_does_not_flatten_the_rest():
    high = learning_curves(rows(nats=lambda s: 1000.0 if s == 110 else 3 + decay(s))).axes[0].get_ylim()[1]
    assert high < 10
