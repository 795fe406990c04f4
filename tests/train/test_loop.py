"""The order in which a step's work is done, and that nothing waits for a step's numbers."""

import io

import numpy as np
import pytest
from rich.console import Console

from deqflow.data.source import InMemory
from deqflow.machine.signals import StopRequest
from deqflow.runs.checkpoint import Checkpoints, Record
from deqflow.runs.metrics import MetricsWriter
from deqflow.runs.progress import Progress
from deqflow.train.loop import Training
from tests.train.test_step import batch, make


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What a run of 7 steps does, in order: rows every 2 steps, validation every 3, a checkpoint every 4."""
    program, state = make(log_every=2, eval_every=3, checkpoint_every=4)
    done = []

    def batches():
        for step in range(7):
            done.append(f"batch {step}")
            yield batch(step)

    step, save, write = program.step, Checkpoints.save, MetricsWriter.write

    def update(state, batch):
        done.append(f"update {int(state['step'])}")
        return step(state, batch)

    update.trace = step.trace
    program.step = update
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, state, record: done.append(f"save {int(state['step'])}") or save(self, state, record)
    )
    monkeypatch.setattr(
        MetricsWriter, "write", lambda self, step, split, values: done.append(f"{split} row {step}") or write(self, step, split, values)
    )
    monkeypatch.setattr(MetricsWriter, "sync", lambda self: done.append("sync"))
    validation = InMemory({"x": np.ones((4, 3), np.float32), "y": np.ones(4, np.int32)}, "ones")
    with (
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
        MetricsWriter(tmp_path) as writer,
        Progress(7, console=Console(file=io.StringIO())) as progress,
        StopRequest() as stop,
    ):
        training = Training(program, validation, 4, writer, progress, checkpoints, stop)
        training.fit(state, Record(), batches())
    return done


def test_the_order_of_a_step(trained):
    """The row of a step is written when the next one is under way, or else before the step is validated or saved."""
    assert [entry for entry in trained if not entry.startswith("batch")] == [
        *("update 0", "update 1", "update 2", "train row 2", "validation row 3", "sync", "save 3"),
        *("update 3", "train row 4", "sync", "save 4"),
        *("update 4", "update 5", "train row 6", "validation row 6", "sync", "save 6"),
        *("update 6", "train row 7", "validation row 7", "sync", "save 7"),
        *("sync", "save 7"),  # the last step is saved in any case; it is left as it is where it is saved already
    ]


def test_every_update_follows_its_batch(trained):
    updates = [entry for entry in trained if entry.startswith(("batch", "update"))]
    assert updates == [entry for step in range(7) for entry in (f"batch {step}", f"update {step}")]
