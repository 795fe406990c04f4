"""Whole runs: what is on disk, exact resume, interruption, selection, and loading back."""

import errno
import io
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import deqflow
from deqflow.config import load, parse
from deqflow.deq import DEQ, Cell
from deqflow.models import deq_segmenter
from deqflow.registry import UserError
from deqflow.runs.checkpoint import Checkpoints
from deqflow.runs.metrics import read_rows
from deqflow.train import SavedRun, run
from deqflow.train.loop import start
from deqflow.train.step import Program
from tests.runs.test_metrics import events


def leaves_at(directory, step):
    with Checkpoints(directory / "checkpoints") as checkpoints:
        return {name: np.asarray(leaf) for name, leaf in checkpoints.restore(step=step)[0].items()}


def assert_same_run(directory, other, step):
    assert (directory / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    ours, theirs = leaves_at(directory, step), leaves_at(other, step)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


class Alarm(io.StringIO):
    """A terminal that presses ctrl-C when it reads a text."""

    def __init__(self, text, number=signal.SIGINT):
        super().__init__()
        self.text = text
        self.number = number

    def write(self, text):
        if self.text in text:
            os.kill(os.getpid(), self.number)
        return super().write(text)


def test_run_directory(finished):
    names = {path.name for path in finished.directory.iterdir()}
    assert names == {
        *(
            "config.yaml",
            "env.json",
            "metrics.jsonl",
            "timing.jsonl",
            "events.jsonl",
            "checkpoints",
            "plots",
            "tensorboard",
            "DONE",
            ".lock",
        )
    }
    rows = read_rows(finished.directory / "metrics.jsonl")
    assert [(row["step"], row["split"]) for row in rows] == [
        (5, "train"), (8, "validation"), (10, "train"), (15, "train"), (16, "validation"), (20, "train"), (24, "train"),
        (24, "validation"), (24, "test"),
    ]  # fmt: skip
    assert json.loads((finished.directory / "env.json").read_text())["versions"]["jax"] == jax.__version__
    assert {path.name for path in finished.pictures} >= {"learning_curves.png", "density.png"}
    assert all(path.stat().st_size > 1000 for path in finished.pictures)
    assert finished.test["nats"] == rows[-1]["nats"]


def test_the_resolved_config_repeats_the_run(finished, tmp_path):
    again = run(finished.directory / "config.yaml", tmp_path / "again", quiet=True)
    assert_same_run(again.directory, finished.directory, 24)
    assert again.test == finished.test


@pytest.mark.parametrize(
    ("text", "number", "step"),
    [
        ("step 5/", signal.SIGINT, 6),  # the rows of a step are written while the next one is under way
        ("step 5/", signal.SIGTERM, 6),
        ("step 16: validation", signal.SIGINT, 16),
    ],
)
def test_interrupted_and_resumed_is_bitwise_the_uninterrupted_run(tiny, finished, tmp_path, text, number, step):
    first = run(parse(tiny), tmp_path / "run", console=Console(file=Alarm(text, number)))
    assert first.interrupted == number
    assert first.step == step
    assert not (first.directory / "DONE").exists()
    second = run(parse(tiny), tmp_path / "run", resume=True, quiet=True)
    assert second.interrupted is None
    assert_same_run(second.directory, finished.directory, 24)
    assert second.test == finished.test


def test_killed_between_checkpoints_the_rows_past_the_last_one_are_repeated(tiny, finished, tmp_path):
    """A run whose newest checkpoint, result and pictures are lost goes on from the one before."""
    directory = tmp_path / "run"
    shutil.copytree(finished.directory, directory)
    (directory / "DONE").unlink()
    shutil.rmtree(directory / "checkpoints" / "24")
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "split": "tr')  # the process was killed here
    resumed = run(parse(tiny), directory, resume=True, quiet=True)
    assert_same_run(resumed.directory, finished.directory, 24)


def test_killed_before_the_first_checkpoint(tiny, finished, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    shutil.copy(finished.directory / "config.yaml", directory)
    resumed = run(parse(tiny), directory, resume=True, quiet=True)
    assert_same_run(resumed.directory, finished.directory, 24)


def test_killed_while_it_draws(tiny, finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished.directory, directory)
    (directory / "DONE").unlink()
    resumed = run(parse(tiny), directory, resume=True, quiet=True)
    assert_same_run(resumed.directory, finished.directory, 24)


def test_resuming_a_finished_run_gives_its_result(tiny, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*")}
    again = run(parse(tiny), finished.directory, resume=True, quiet=True)
    assert (again.test, again.pictures, again.step) == (finished.test, finished.pictures, finished.step)
    assert {path: path.stat().st_mtime_ns for path in finished.directory.rglob("*")} == before


def test_resume_with_another_config_lists_the_differences(tiny, finished):
    tiny["train"]["steps"] = 30
    tiny["model"]["width"] = 9
    with pytest.raises(UserError, match=r"another config.*\n  model.width: 8 there, 9 here\n  train.steps: 24 there, 30 here"):
        run(parse(tiny), finished.directory, resume=True, quiet=True)


def test_loaded_model_is_the_tested_one(finished):
    model = deqflow.load(finished.directory)
    source = load(finished.directory / "config.yaml").data.build()
    x = jnp.asarray(source.split("test").gather(np.arange(50))["x"])
    np.testing.assert_allclose(-model.log_prob(x).mean(), finished.test["nats"], rtol=1e-5)
    assert SavedRun.open(finished.directory).evaluate("test")["nats"] == finished.test["nats"]


def test_best_or_last_is_selected(tiny, tmp_path):
    """The learning rate of the last steps ruins the model: the best checkpoint is an earlier one, and stays on disk."""
    tiny["optim"]["lr"] = {"kind": "linear", "peak": 1e-3, "end": 0.3}
    tiny["train"] |= {"ema": None, "keep": 1, "eval_every": 4}
    best = run(parse(tiny), tmp_path / "best", quiet=True)
    rows = {row["step"]: row["nats"] for row in read_rows(best.directory / "metrics.jsonl") if row["split"] == "validation"}
    assert best.selected_step == min(rows, key=rows.get) < 24
    tiny["train"]["select"] = "last"
    last = run(parse(tiny), tmp_path / "last", quiet=True)
    assert last.selected_step == 24
    assert last.test["nats"] > best.test["nats"]
    assert SavedRun.open(best.directory).step == best.selected_step
    assert SavedRun.open(last.directory).step == 24


def test_patience_ends_the_run(tiny, tmp_path):
    tiny["optim"]["lr"] = {"kind": "linear", "peak": 1e-3, "end": 0.3}
    tiny["train"] |= {"ema": None, "eval_every": 2, "patience": 2}
    result = run(parse(tiny), tmp_path / "run", quiet=True)
    assert result.selected_step + 4 == result.step < 24
    assert run(parse(tiny), tmp_path / "run", resume=True, quiet=True).test == result.test
    (result.directory / "DONE").unlink()
    assert run(parse(tiny), tmp_path / "run", resume=True, quiet=True).step == result.step


def test_a_loss_that_is_not_finite_ends_the_run(tiny, tmp_path):
    tiny["optim"] = {"kind": "adamw", "lr": 1e30}
    tiny["model"]["dropout"] = 0.0
    with pytest.raises(UserError, match="the training loss became (nan|inf) .* lower the learning rate"):
        run(parse(tiny), tmp_path / "run", quiet=True)


class GrowingCell(Cell):
    """A cell that no plain iteration solves: `f(z, x) = 3 z + x`."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.gain = nnx.Param(jnp.full(width, 3.0))

    def prepare(self, x, key=None):
        return lambda z: self.gain[...] * z + x

    def initial(self, x):
        return jnp.zeros_like(x)


def test_a_cell_that_diverges_ends_the_run(tiny, tmp_path, monkeypatch):
    config = parse(
        tiny
        | {
            "data": {"kind": "mazes", "size": 5, "batch_size": 4, "examples": 8, "validation_examples": 4, "test_examples": 4},
            "model": {"kind": "deq_segmenter", "width": 8, "solver": {"kind": "picard", "max_steps": 100}},
            "task": {"kind": "segmentation"},
        }
    )
    monkeypatch.setattr(deq_segmenter, "DEQ", lambda cell, *rest, **options: DEQ(GrowingCell(8, rngs=nnx.Rngs(0)), *rest, **options))
    with pytest.raises(
        UserError, match=r"100% of the solves failed .*: of its solves 100% ended DIVERGED: .*grew without.*; damp the solver"
    ):
        run(config, tmp_path / "run", quiet=True)


def test_a_run_whose_last_checkpoint_cannot_be_saved_is_not_finished(tiny, finished, open_path, as_nobody):
    directory = open_path / "run"
    shutil.copytree(finished.directory, directory)
    (directory / "DONE").unlink()
    shutil.rmtree(directory / "checkpoints" / "24")
    for path in [directory, *directory.rglob("*")]:
        path.chmod(0o777)
    (directory / "checkpoints").chmod(0o555)
    with as_nobody(), pytest.raises(UserError, match="checkpoint of step 24 cannot be saved"):
        run(parse(tiny), directory, resume=True, quiet=True)
    assert not (directory / "DONE").exists()


def test_a_run_that_cannot_be_written_to_is_not_resumed(tiny, finished, open_path, as_nobody):
    directory = open_path / "run"
    shutil.copytree(finished.directory, directory)
    (directory / "DONE").unlink()
    directory.chmod(0o555)
    with as_nobody(), pytest.raises(UserError, match="cannot write the run directory .*/run: Permission denied"):
        run(parse(tiny), directory, resume=True, quiet=True)


@pytest.mark.parametrize("text", ["", '{"step": 3', "[]", "{}"])
def test_a_damaged_result_is_told(tiny, finished, tmp_path, text):
    directory = tmp_path / "run"
    shutil.copytree(finished.directory, directory)
    (directory / "DONE").write_text(text)
    with pytest.raises(UserError, match="DONE is damaged; delete it"):
        run(parse(tiny), directory, resume=True, quiet=True)


def full(*arguments, **named):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["deqflow.runs.metrics.Events.scalar", "matplotlib.figure.Figure.savefig", "os.fsync"])
def test_a_full_disk_ends_the_run_unfinished(tiny, tmp_path, monkeypatch, where):
    monkeypatch.setattr(where, full)
    with pytest.raises(UserError, match="cannot write the run directory .*: No space left on device"):
        run(parse(tiny), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "DONE").exists()


def test_too_large_a_model_leaves_nothing_behind(tiny, tmp_path):
    tiny["model"]["width"] = 800_000
    with pytest.raises(UserError, match=r"not enough memory: lower data.batch_size, or make the model smaller .*allocat"):
        run(parse(tiny), tmp_path / "runs" / "run", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_too_large_a_batch_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    def start(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr("deqflow.train.running.start", start)
    with pytest.raises(UserError, match="not enough memory: lower data.batch_size"):
        run(parse(tiny), tmp_path / "runs" / "run", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_ours_keeps_its_type(tiny, tmp_path, monkeypatch):
    def start(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr("deqflow.train.running.start", start)
    with pytest.raises(RuntimeError, match="a bug"):
        run(parse(tiny), tmp_path / "run", quiet=True)


def test_interrupted_before_the_first_step_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    def begin(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return start(*arguments)

    monkeypatch.setattr("deqflow.train.running.start", begin)
    result = run(parse(tiny), tmp_path / "runs" / "run", quiet=True)
    assert (result.interrupted, result.step) == (signal.SIGINT, 0)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_while_it_is_tested(tiny, finished, tmp_path, monkeypatch):
    def draw(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return ()

    with monkeypatch.context() as patch:
        patch.setattr("deqflow.train.running._draw", draw)
        first = run(parse(tiny), tmp_path / "run", quiet=True)
    assert (first.interrupted, first.step) == (signal.SIGINT, 24)
    assert not (first.directory / "DONE").exists()
    assert_same_run(run(parse(tiny), first.directory, resume=True, quiet=True).directory, finished.directory, 24)


def test_the_speed_is_that_of_the_device_from_the_first_row_on(tiny, tmp_path, monkeypatch):
    """A step is dispatched in no time, and takes some 20 ms on the device."""
    step = Program._step

    def slow(self, state, batch):
        state, means = step(self, state, batch)
        matrix = jnp.full((300, 300), means["loss"])
        matrix = jax.lax.fori_loop(0, 20, lambda _, m: jnp.tanh(m @ m), matrix)
        return state, means | {"loss": means["loss"] + 1e-9 * matrix[0, 0]}

    monkeypatch.setattr(Program, "_step", slow)
    tiny["train"] |= {"log_every": 3, "eval_every": 24, "checkpoint_every": 24}
    result = run(parse(tiny), tmp_path / "run", quiet=True)
    rows = read_rows(result.directory / "timing.jsonl")
    first, last = rows[0], rows[-2]  # the last row itself is written after the pause of the validation
    true = (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])
    assert len(rows) == 8
    for row in rows:
        assert row["steps_per_second"] < 10 * true  # of dispatch alone it would be a hundred times


def test_speed_and_memory_are_told(finished):
    *_, row = read_rows(finished.directory / "timing.jsonl")
    assert row["examples_per_second"] == pytest.approx(32 * row["steps_per_second"])
    assert 2**24 < row["peak_bytes"] < 2**40
    assert 1e6 < row["flops_per_second"] < 1e12


def test_a_trace_is_recorded_when_asked_for(tiny, finished, tmp_path):
    result = run(parse(tiny), tmp_path / "run", profile=True, quiet=True)
    (trace,) = (result.directory / "profile").rglob("*.xplane.pb")
    assert b"_step" in trace.read_bytes()
    assert not (finished.directory / "profile").exists()


def test_training_learns(finished):
    rows = [row["nats"] for row in read_rows(finished.directory / "metrics.jsonl") if row["split"] == "validation"]
    assert rows[0] > rows[1] > rows[2]


def test_default_directories_are_numbered(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny["train"]["steps"] = 2
    assert [str(run(parse(tiny), quiet=True).directory) for _ in range(2)] == ["runs/run", "runs/run-2"]
    assert str(run(parse(tiny), resume=True, quiet=True).directory) == "runs/run-2"


def test_tensorboard_shows_all_that_a_run_has_measured_and_drawn(finished):
    shown = {(event.step, value.tag) for event in events(finished.directory) for value in event.summary.value}
    for row in read_rows(finished.directory / "metrics.jsonl"):
        assert {(row["step"], f"{row['split']}/{name}") for name in row.keys() - {"step", "split"}} <= shown
    assert {(finished.step, f"plots/{picture.stem}") for picture in finished.pictures} <= shown
