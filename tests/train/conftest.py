"""A small run that several tests look at."""

import copy
import json

import numpy as np
import pytest

from deqflow.config import parse
from deqflow.runs.checkpoint import Checkpoints
from deqflow.train import run

TINY = {
    "seed": 3,
    "data": {"kind": "moons", "batch_size": 32, "examples": 200, "validation_examples": 70, "test_examples": 50},
    "model": {"kind": "realnvp", "couplings": 2, "width": 8, "depth": 1, "dropout": 0.1},
    "task": {"kind": "density"},
    "optim": {"kind": "adamw", "lr": {"kind": "cosine", "peak": 1e-2, "warmup": 2}, "clip": 1.0},
    "train": {"steps": 24, "log_every": 5, "eval_every": 8, "checkpoint_every": 6, "ema": 0.9, "keep": 2},
}


def assert_same(directory, other, step):
    """Bit by bit the same rows, checkpoint of `step` and result in two run directories."""
    assert (directory / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    states = []
    for where in (directory, other):
        with Checkpoints(where / "checkpoints") as checkpoints:
            states.append(checkpoints.restore(step=step))
    assert states[0][1] == states[1][1]
    assert states[0][0].keys() == states[1][0].keys()
    for name, leaf in states[0][0].items():
        np.testing.assert_array_equal(leaf, states[1][0][name], err_msg=name)
    assert json.loads((directory / "DONE").read_text())["test"] == json.loads((other / "DONE").read_text())["test"]


@pytest.fixture
def tiny():
    """A config of a run of 24 steps that takes about a second once it is compiled, to be changed at will."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The result of the tiny run, never interrupted; not to be written to."""
    return run(parse(copy.deepcopy(TINY)), tmp_path_factory.mktemp("finished") / "run", quiet=True)
