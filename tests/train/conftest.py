"""A small run that several tests look at."""

import codecs
import contextlib
import copy
import os
import tempfile
from pathlib import Path

import pytest

from deqflow.config import parse
from deqflow.train import run

TINY = {
    "seed": 3,
    "data": {"kind": "moons", "batch_size": 32, "examples": 200, "validation_examples": 70, "test_examples": 50},
    "model": {"kind": "realnvp", "couplings": 2, "width": 8, "depth": 1, "dropout": 0.1},
    "task": {"kind": "density"},
    "optim": {"kind": "adamw", "lr": {"kind": "cosine", "peak": 1e-2, "warmup": 2}, "clip": 1.0},
    "train": {"steps": 24, "log_every": 5, "eval_every": 8, "checkpoint_every": 6, "ema": 0.9, "keep": 2},
}


@pytest.fixture
def tiny():
    """A config of a run of 24 steps that takes about a second once it is compiled, to be changed at will."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The result of the tiny run, never interrupted; not to be written to."""
    return run(parse(copy.deepcopy(TINY)), tmp_path_factory.mktemp("finished") / "run", quiet=True)


@pytest.fixture
def open_path():
    """A folder that other users may enter; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def nobody():
    """For root, to whom permissions mean nothing: be someone else for a moment."""
    codecs.lookup("utf-8-sig")  # loaded when first used, and Python may be installed where that user cannot read
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def as_nobody():
    return nobody
