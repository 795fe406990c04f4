"""Language modelling: the loss of the next token, its units, the statistics of implicit models, text, and clear errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.implicit import Anderson, Status
from deqflow.models.deq_transformer import DEQTransformer
from deqflow.registry import resolve
from deqflow.tasks import LanguageModelling

KEY = jax.random.key(0)
VOCABULARY = ("<unk>", "\n", "a", "b")


class Bigram(nnx.Module):
    """The logits of the next token from the present one."""

    def __init__(self, table):
        self.table = nnx.Param(jnp.asarray(table, jnp.float32))

    def __call__(self, tokens, *, key=None):
        return self.table[...][tokens]


def task_of(vocabulary=VOCABULARY, context=5):
    return LanguageModelling(vocabulary=vocabulary, input_shape=(context + 1,))


@functools.partial(nnx.jit, static_argnums=0)
def evaluate(task, model, x):
    return task.evaluate(model, {"x": x}, KEY)


def rows_of(task, model, x):
    return {name: np.asarray(value) for name, value in evaluate(task, model, x).items()}


def test_the_loss_of_a_known_distribution():
    """After every token comes `a` with probability 1/2, `b` with 1/4, the others with 1/8."""
    task, model = task_of(), Bigram(np.tile(np.log([1 / 8, 1 / 8, 1 / 2, 1 / 4]), (4, 1)))
    x = jnp.array([[0, 2, 2, 2, 2, 2], [1, 3, 3, 1, 2, 2]])
    rows = rows_of(task, model, x)
    np.testing.assert_allclose(rows["loss"] / math.log(2), [[1, 1, 1, 1, 1], [2, 2, 3, 1, 1]], rtol=1e-6)
    summary = task.summarize(rows)
    assert summary == {
        "loss": pytest.approx(1.4 * math.log(2)),
        "bits_per_token": pytest.approx(1.4),
        "perplexity": pytest.approx(2**1.4),
    }
    loss, numbers = task.loss(model, {"x": x}, KEY)
    assert (float(loss), numbers) == (pytest.approx(summary["loss"]), {})
    assert (task.monitor in summary, task.maximize) == (True, False)


def test_an_implicit_model_reports_its_solves_and_a_failed_one_counts():
    task = task_of()
    model = DEQTransformer(width=8, heads=2, solver=Anderson(rtol=1e-4), input_shape=(6,), vocabulary=VOCABULARY, rngs=nnx.Rngs(0))
    x = jax.random.randint(KEY, (4, 6), 0, 4)
    rows = rows_of(task, model, x)
    summary = task.summarize(rows)
    assert 0 < summary["residual_median"] <= summary["residual_max"] <= 1e-4
    assert 1 < summary["solver_steps"] < 50
    assert summary["solver_unconverged"] == summary["solver_failures"] == 0
    figures = task.pictures(model, rows, {"x": np.asarray(x), "mask": np.array([1, 1, 1, 0])}, KEY)
    assert sorted(figures) == ["loss_by_position", "solver_residuals"]
    assert "3 test examples" in figures["solver_residuals"].axes[0].get_title()
    np.testing.assert_allclose(figures["loss_by_position"].axes[0].lines[0].get_ydata(), rows["loss"].mean(0), rtol=1e-5)

    model.deq.cell.norm.scale[...] = jnp.nan
    rows = rows_of(task, model, x)
    assert (rows["status"] == Status.DIVERGED).all()
    assert task.summarize(rows)["loss"] == math.inf


@pytest.mark.parametrize(
    ("vocabulary", "start", "text"), [(VOCABULARY, 1, "ab\nab\na"), (("<eos>", "<unk>", "the", "end"), 0, "the end\nthe end\nthe")]
)
def test_a_model_writes_text(vocabulary, start, text):
    """A cycle that begins after the end of a line: a (the), b (end), end of line."""
    first, second = [index for index in range(4) if index != start and vocabulary[index] != "<unk>"]
    table = np.full((4, 4), -30.0)
    table[start, first] = table[first, second] = table[second, start] = 30.0
    assert task_of(vocabulary).sample(Bigram(table), 2, 7, KEY) == [text, text]


ERRORS = {
    "no text": (lambda: LanguageModelling(), "no vocabulary; choose data such as text"),
    "other vocabulary": (
        lambda: task_of().loss(Bigram(np.zeros((4, 3))), {"x": jnp.zeros((2, 6), int)}, KEY),
        r"\(2, 5, 4\).*returned \(2, 5, 3\)",
    ),
    "no model of language": (lambda: task_of().loss(nnx.List([]), {"x": jnp.zeros((2, 6), int)}, KEY), "maps tokens to logits"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mistakes_have_one_clear_message(case):
    make, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_registered():
    assert resolve("task", "language_modelling") is LanguageModelling
