"""Processes that are killed, directories that are damaged, held or full: resumed, each run is bitwise the one that was left alone."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deqflow.config import parse
from deqflow.registry import UserError
from deqflow.runs.checkpoint import Checkpoints
from deqflow.runs.directory import RunDirectory
from deqflow.train import SavedRun, run
from tests.train.conftest import TINY, assert_same

ROOT = Path(__file__).resolve().parent.parent.parent
LONG = copy.deepcopy(TINY)
LONG["data"] |= {"validation_examples": 3000}
LONG["train"] |= {"steps": 300, "log_every": 10, "eval_every": 50, "checkpoint_every": 20}


def events(directory):
    return [json.loads(line)["event"] for line in (directory / "events.jsonl").read_text().splitlines()]


def trainer(here, *arguments, limit=None):
    """A process that trains `config.yaml` in the folder `run`; `limit` is the size in bytes that no file of it may exceed.

    Not even one of the compiled programs it keeps, for which it then has a folder of its own.
    """
    command = [sys.executable, "-m", "deqflow", "train", "config.yaml", "--run", "run", "--quiet", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if limit is not None:
        command = ["bash", "-c", f'ulimit -f {limit // 1024}; exec "$@"', "bash", *command]
        del environment["JAX_COMPILATION_CACHE_DIR"]
        environment["XDG_CACHE_HOME"] = str(here)
    return subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(directory):
    """What the run has logged so far, the last line perhaps cut."""
    path = directory / "metrics.jsonl"
    return [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def saved(directory):
    return [int(path.name) for path in (directory / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]


PHASES = {
    "compiling": (signal.SIGKILL, lambda run: (run / "config.yaml").exists()),
    "training": (signal.SIGKILL, lambda run: len(rows(run)) > 2),
    "saving": (signal.SIGKILL, lambda run: any((run / "checkpoints").glob("*.orbax-checkpoint-tmp*"))),
    "interrupted": (signal.SIGTERM, lambda run: any(step > 40 for step in saved(run))),
    "validating": (signal.SIGKILL, lambda run: re.search(r'"step": (150|200|250), "split": "train"', "".join(rows(run)[-1:]))),
    "testing": (signal.SIGTERM, lambda run: 300 in saved(run)),
}


def test_a_chain_of_kills(tmp_path):
    """Each process is ended in another phase of the run, which the next one goes on with."""
    (tmp_path / "config.yaml").write_text(parse(LONG).dump())
    directory = tmp_path / "run"
    for name, (number, reached) in PHASES.items():
        with trainer(tmp_path, *["--resume"][: directory.exists()]) as process:
            while f"process {process.pid} " not in (lock.read_text() if (lock := directory / ".lock").exists() else ""):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.005)
            while not reached(directory):
                assert process.poll() is None, f"{name}: {process.stderr.read()}"
                time.sleep(0.001)
            process.send_signal(number)
            error = process.communicate(timeout=60)[1]
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), error
        assert "Traceback" not in error
        assert not (directory / "DONE").exists()
    undisturbed = run(parse(LONG), tmp_path / "undisturbed", quiet=True).directory
    assert_same(run(parse(LONG), directory, resume=True, quiet=True).directory, undisturbed, 300)
    assert events(directory).count("resumed") >= 3
    assert events(directory).count("interrupted") == 2


@pytest.fixture
def unfinished(finished, tmp_path):
    """The tiny run as it was before its test."""
    shutil.copytree(finished.directory, tmp_path / "run")
    (tmp_path / "run" / "DONE").unlink()
    return tmp_path / "run"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_bytes(path.read_bytes()[:-1]), flip, lambda path: path.unlink()],
    ids=["cut", "flipped", "gone"],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tiny, finished, unfinished, damage, capfd):
    for path in (unfinished / "checkpoints" / "24" / "state" / "d").iterdir():
        damage(path)
    assert_same(run(parse(tiny), unfinished, resume=True, quiet=True).directory, finished.directory, 24)
    assert "24 is damaged" in capfd.readouterr().err
    assert events(unfinished) == ["damaged checkpoint", "resumed"]


def test_where_the_best_checkpoint_is_damaged_the_last_is_tested(tiny, unfinished):
    with Checkpoints(unfinished / "checkpoints") as checkpoints:
        state, record = checkpoints.restore()
    shutil.rmtree(unfinished / "checkpoints" / "24")
    with Checkpoints(unfinished / "checkpoints") as checkpoints:
        checkpoints.save(state, type(record)(best_step=18, best_value=record.best_value, sound_step=18))
    flip(unfinished / "checkpoints" / "18" / "state" / "manifest.ocdbt")
    result = run(parse(tiny), unfinished, resume=True, quiet=True)
    assert result.selected_step == 24
    assert events(unfinished) == ["resumed", "damaged checkpoint"]
    assert SavedRun.open(unfinished).step == 24


def test_one_trainer_at_a_time(tiny, unfinished):
    with RunDirectory(unfinished).held(parse(tiny)):
        with pytest.raises(UserError, match=rf"another process \(process {os.getpid()} on .*\) trains in"):
            run(parse(tiny), unfinished, resume=True, quiet=True)
    assert run(parse(tiny), unfinished, resume=True, quiet=True).step == 24


def test_a_directory_without_a_config_is_begun_anew(tiny, finished, tmp_path):
    """The process was killed before it had written the config."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".config.yaml.tmp").write_text("seed")
    assert_same(run(parse(tiny), tmp_path / "run", resume=True, quiet=True).directory, finished.directory, 24)


@pytest.mark.parametrize(
    ("limit", "what"), [(2048, "the checkpoint of step 6 cannot be saved in"), (24576, "cannot write the run directory")]
)
def test_a_file_that_may_not_grow_ends_the_run_in_one_line(tiny, finished, tmp_path, limit, what):
    """As on a disk that is full, while a checkpoint is saved or a picture; with room again, the run goes on."""
    (tmp_path / "config.yaml").write_text(parse(tiny).dump())
    with trainer(tmp_path, limit=limit) as process:
        out, error = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    *others, last = error.splitlines()  # Matplotlib says that it cannot keep its list of fonts
    assert last.startswith(f"error: {what}") and "File too large" in last and len(others) < 2
    assert not (tmp_path / "run" / "DONE").exists()
    assert_same(run(parse(tiny), tmp_path / "run", resume=True, quiet=True).directory, finished.directory, 24)
