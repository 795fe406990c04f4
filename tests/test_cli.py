"""The `deqflow` program: what it prints, its exit codes, and every mistake a user may make."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deqflow.cli import main
from deqflow.config import parse
from deqflow.train import Result, run

CONFIG = """
seed: 3
data:  {kind: moons, batch_size: 32, examples: 200, validation_examples: 70, test_examples: 50}
model: {kind: realnvp, couplings: 2, width: 8, depth: 1, dropout: 0.1}
task:  {kind: density}
optim: {kind: adamw, lr: {kind: cosine, peak: 1e-2, warmup: 2}, clip: 1.0}
train: {steps: 24, log_every: 5, eval_every: 8, checkpoint_every: 6, ema: 0.9}
"""
ARRAYS = """
data:  {kind: arrays, train: x.npy, test: x.npy, batch_size: 4}
model: {kind: realnvp, couplings: 2, width: 8, depth: 1}
task:  {kind: density}
optim: {kind: adamw, lr: 1e-3}
train: {steps: 2}
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run directory; not to be written to."""
    return run(parse(CONFIG), tmp_path_factory.mktemp("trained") / "run", quiet=True).directory


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with a good config in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(CONFIG)
    return tmp_path


def contents(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def refused(capsys, here, *arguments):
    """The message of a command that must fail with code 2, one message, and no change on disk."""
    before = contents(here)
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("error:") == 1
    assert "Traceback" not in captured.err
    assert all(line.startswith(("error: ", "  ")) for line in captured.err.splitlines())
    assert contents(here) == before
    return captured.err


def text_config(text):
    return lambda here: (here / "bad.yaml").write_text(text)


def arrays(make, config=ARRAYS):
    def write(here):
        make(here / "x.npy")
        (here / "bad.yaml").write_text(config)

    return write


def save(array):
    return lambda path: np.save(path, array)


RNG = np.random.default_rng(0)
NAN = RNG.normal(size=(20, 2))
NAN[7, 1] = np.nan

MISTAKES = {
    "missing file": (lambda here: None, [], ["bad.yaml", "no such file"]),
    "a directory": (lambda here: (here / "bad.yaml").mkdir(), [], ["bad.yaml", "directory"]),
    "yaml syntax": (text_config("seed: [1, 2\nmodel: }"), [], ["bad.yaml:2", "not valid YAML"]),
    "binary file": (lambda here: (here / "bad.yaml").write_bytes(bytes(range(256))), [], ["bad.yaml"]),
    "empty file": (text_config(""), [], ["bad.yaml", "empty"]),
    "unknown key": (text_config(CONFIG.replace("width", "widht")), [], ["bad.yaml:4", "model.widht", "'width'"]),
    "unknown section": (text_config(CONFIG.replace("optim", "optimm")), [], ["optimm", "optim"]),
    "wrong type": (text_config(CONFIG.replace("steps: 24", "steps: many")), [], ["train.steps", "an integer", "'many'"]),
    "out of range": (text_config(CONFIG.replace("dropout: 0.1", "dropout: 1.5")), [], ["model.dropout", "< 1", "1.5"]),
    "unknown kind": (text_config(CONFIG.replace("realnvp", "realnpv")), [], ["model", "'realnpv'", "'realnvp'"]),
    "unknown data": (text_config(CONFIG.replace("moons", "moon")), [], ["data", "'moon'", "'moons'"]),
    "unknown tfds": (
        text_config(ARRAYS.replace("kind: arrays, train: x.npy, test: x.npy", "kind: tfds, name: mnits")), [], ["mnits", "mnist"]
    ),
    "bad override": (text_config(CONFIG), ["train.stesp=3"], ["train.stesp=3", "'steps'"]),
    "override without value": (text_config(CONFIG), ["train.steps"], ["train.steps"]),
    "several at once": (
        text_config(CONFIG.replace("width", "widht").replace("steps: 24", "steps: many")), [], ["model.widht", "train.steps"]
    ),
    "missing plugin": (text_config(CONFIG + "plugins: [no_such_module_here]\n"), [], ["no_such_module_here"]),
    "missing data file": (text_config(ARRAYS), [], ["x.npy"]),
    "empty data": (arrays(save(np.zeros((0, 2)))), [], ["x.npy", "empty"]),
    "nan data": (arrays(save(NAN)), [], ["x.npy", "example 7", "NaN"]),
    "damaged data": (arrays(lambda path: path.write_bytes(b"\x93NUMPY\x01\x00junk")), [], ["x.npy"]),
    "one dimension": (arrays(save(RNG.normal(size=(20, 1)))), [], ["two dimensions or more", "(1,)"]),
    "image size": (
        text_config("data: moons\nmodel: deq_classifier\ntask: density\noptim: {kind: adamw, lr: 1e-3}\ntrain: {steps: 2}\n"),
        [],
        ["model"],
    ),
    "task needs labels": (text_config(CONFIG.replace("kind: density", "kind: classification")), [], ["task", "label"]),
    "task and model": (
        text_config("data: digits\nmodel: deq_classifier\ntask: density\noptim: {kind: adamw, lr: 1e-3}\ntrain: {steps: 2}\n"),
        [],
        ["deq_classifier", "density"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_config_or_data(name, here, capsys):
    prepare, overrides, words = MISTAKES[name]
    prepare(here)
    message = refused(capsys, here, "train", "bad.yaml", *overrides)
    for word in words:
        assert word in message


def test_run_directory_exists(here, capsys):
    (here / "run").mkdir()
    (here / "run" / "notes.txt").write_text("mine")
    assert "run exists already" in refused(capsys, here, "train", "good.yaml", "--run", "run")


def test_run_directory_below_a_file(here, capsys):
    assert "good.yaml is a file" in refused(capsys, here, "train", "good.yaml", "--run", "good.yaml/run")


def test_no_permission_to_write(capsys, open_path, as_nobody):
    (open_path / "good.yaml").write_text(CONFIG)
    (open_path / "locked").mkdir(mode=0o555)
    with as_nobody():
        message = refused(capsys, open_path, "train", str(open_path / "good.yaml"), "--run", str(open_path / "locked" / "run"))
    assert "no permission to write in" in message


def test_what_may_not_be_entered(capsys, trained, open_path, as_nobody):
    here = open_path
    (here / "good.yaml").write_text(CONFIG)
    shutil.copytree(trained, here / "run")
    for path in [here, *here.rglob("*")]:
        path.chmod(0o755)
    (here / "locked").mkdir(mode=0)
    (here / "run" / "checkpoints").chmod(0)
    for arguments in (
        ["train", f"{here}/good.yaml", "--run", f"{here}/locked/run"],
        ["eval", f"{here}/locked/run"],
        ["eval", f"{here}/run"],
    ):
        with as_nobody():
            assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: cannot ")
        assert "Permission denied" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["train", "good.yaml", "--run"], ["eval"], ["sample"]])
def test_a_name_that_is_too_long(command, here, capsys):
    assert "File name too long" in refused(capsys, here, *command, "a" * 300)


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_no_run_directory(command, here, capsys):
    assert "not a run directory: there is no such directory" in refused(capsys, here, command, "nowhere")
    (here / "empty").mkdir()
    assert "not a run directory: it has no config.yaml" in refused(capsys, here, command, "empty")


def test_nothing_to_resume(here, capsys):
    assert "not a run directory" in refused(capsys, here, "train", "good.yaml", "--run", "nowhere", "--resume")


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_missing_and_damaged_checkpoints(command, here, capsys, trained):
    shutil.copytree(trained, here / "run")
    assert "no checkpoint of step 7" in refused(capsys, here, command, "run", "--step", "7")
    for path in (here / "run" / "checkpoints" / "24" / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    message = refused(capsys, here, command, "run")
    assert "24 is damaged" in message
    shutil.rmtree(here / "run" / "checkpoints")
    assert "no checkpoints" in refused(capsys, here, command, "run")


def test_damaged_checkpoint_on_resume(here, capsys, trained):
    shutil.copytree(trained, here / "run")
    (here / "run" / "DONE").unlink()
    for path in (here / "run" / "checkpoints" / "24" / "state" / "d").iterdir():
        path.write_bytes(b"")
    assert main(["train", "good.yaml", "--run", "run", "--resume", "--quiet"]) == 0
    assert "24 is damaged" in (warning := capsys.readouterr().err)
    assert warning.count("\n") == 1
    assert (here / "run" / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    events = [json.loads(line) for line in (here / "run" / "events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["event"]) for event in events] == [(18, "damaged checkpoint"), (18, "resumed")]


def test_a_changed_config_is_refused_or_taken_over(here, capsys, trained):
    shutil.copytree(trained, here / "run")
    longer = ["train", "good.yaml", "train.steps=26", "--run", "run", "--resume"]
    assert "train.steps: 24 there, 26 here" in refused(capsys, here, *longer)
    assert "is for --resume" in refused(capsys, here, "train", "good.yaml", "--allow-config-change")
    assert main([*longer, "--allow-config-change", "--quiet"]) == 0
    assert "train.steps: 24 there, 26 here" in capsys.readouterr().err
    assert json.loads((here / "run" / "DONE").read_text())["step"] == 26
    assert main([*longer, "--quiet"]) == 0  # it is the run's own config now


def test_an_implicit_classifier_reports_its_solver_and_has_no_samples(here, capsys):
    (here / "deq.yaml").write_text(
        "data: {kind: digits, batch_size: 16}\nmodel: {kind: deq_classifier, width: 8, groups: 4, stride: 2, grid: 2}\n"
        "task: classification\noptim: {kind: adamw, lr: 1e-3}\ntrain: {steps: 4, log_every: 2}\n"
    )
    assert main(["train", "deq.yaml", "--run", "run", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "test accuracy: " in out
    assert "residual_median" in out
    for name in ("learning_curves", "confusion_matrix", "least_certain", "solver_residuals"):
        assert f"run/plots/{name}.png" in out
    rows = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in rows[:2]:
        assert (row["split"], row["solver_failures"]) == ("train", 0)
        assert 1 < row["solver_steps"] <= row["solver_max_steps"]
        assert 0 < row["solver_residual"] < 1e-3
    assert "deq_classifier cannot be sampled from" in refused(capsys, here, "sample", "run")


def test_a_language_model_is_trained_and_writes_text(here, capsys):
    (here / "poem.txt").write_text("the rain falls on the plain\n" * 40)
    (here / "lm.yaml").write_text(
        "data: {kind: text, path: poem.txt, context: 8, batch_size: 8}\nmodel: {kind: transformer, width: 8, heads: 2, depth: 1}\n"
        "task: language_modelling\noptim: {kind: adamw, lr: 1e-2}\ntrain: {steps: 4, log_every: 2}\n"
    )
    assert main(["train", "lm.yaml", "--run", "run", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "test loss: " in out
    assert "bits_per_token" in out
    assert "run/plots/loss_by_position.png" in out
    assert main(["sample", "run", "-n", "2", "--length", "30"]) == 0
    assert capsys.readouterr().out.split() == ["run/samples.txt"]
    text = (here / "run" / "samples.txt").read_text().replace("<unk>", "?")
    first, second = text.removeprefix("--- 1 ---\n").removesuffix("\n").split("\n--- 2 ---\n")
    assert (len(first), len(second)) == (30, 30)
    assert set(first) <= set("the rain falls on the plain\n?")
    assert "no such file" in refused(capsys, here, "train", "lm.yaml", "data.path=peom.txt")
    assert "needs windows of tokens" in refused(capsys, here, "train", "good.yaml", "task=language_modelling")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["train"], ["fly"], ["train", "c.yaml", "--fly"], ["eval", "r", "--split", "tset"]),
        *(["sample", "run", *words] for words in (["-n", "0"], ["-n", "3000000000"], ["--seed", "99999999999999999999"], ["--seed", "-1"])),
    ],
)
def test_wrong_command_lines(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.count("error:") == 1


def test_train_prints_the_result_and_the_pictures(here, capsys):
    assert main(["train", "good.yaml", "train.steps=10", "--run", "run", "train.eval_every=5"]) == 0
    out = capsys.readouterr().out
    assert "test nats: " in out
    assert "trained 10 steps in " in out
    for line in out.splitlines():
        if line.startswith("  "):
            assert (here / line.strip()).stat().st_size > 1000
    assert main(["train", "good.yaml", "train.steps=10", "train.eval_every=5", "--run", "run", "--resume"]) == 0
    assert out.splitlines()[0] == capsys.readouterr().out.splitlines()[0]


def test_eval(here, capsys, trained):
    assert main(["eval", str(trained), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    done = json.loads((trained / "DONE").read_text())
    assert {name: printed[name] for name in done["test"]} == done["test"]
    assert main(["eval", str(trained), "--split", "validation", "--step", str(done["step"])]) == 0
    assert capsys.readouterr().out.startswith("validation nats: ")


def test_sample(here, capsys, trained):
    assert main(["sample", str(trained), "-n", "50", "--out", "draws.npy"]) == 0
    assert capsys.readouterr().out.split() == ["draws.npy", "draws.png"]
    draws = np.load("draws.npy")
    assert draws.shape == (50, 2)
    assert np.isfinite(draws).all()
    assert main(["sample", str(trained), "-n", "50", "--out", "again.npy"]) == 0
    np.testing.assert_array_equal(draws, np.load("again.npy"))
    assert main(["sample", str(trained), "-n", "50", "--seed", "1", "--out", "other.npy"]) == 0
    assert not np.array_equal(draws, np.load("other.npy"))


def test_check_counts_parameters_and_reads_no_data(here, capsys):
    (here / "idle.yaml").write_text(CONFIG.replace("examples: 200", "examples: 1000000000000"))  # such data could not be made
    assert main(["check", "idle.yaml"]) == 0
    out = capsys.readouterr().out
    # two ActNorms; couplings: first (1, 8) + 8, block (8, 8) + 8, last (8, 2) + 2, twice
    assert f"parameters: {2 * 4 + 2 * (16 + 72 + 18)}" in out
    assert "FLOPs of a training step" in out
    assert "memory of a training step besides" in out


def test_list_and_schema(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for word in ("solver: how an equation is solved", "anderson", "realnvp", "tfds", "cosine"):
        assert word in out
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"


def start(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "deqflow", *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )  # fmt: skip


def test_ctrl_c_saves_and_exits_with_130(here):
    """A real process, interrupted in the middle of training, then resumed."""
    with start("train", "good.yaml", "train.steps=100000", "--run", "run", cwd=here) as process:
        metrics = here / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in error
    assert "go on with: deqflow train good.yaml train.steps=100000 --run run --resume" in error
    step = int(error.partition("interrupted after step ")[2].split(",")[0])
    assert (here / "run" / "checkpoints" / str(step)).is_dir()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process has loaded is told by Linux alone")
def test_ctrl_c_while_libraries_are_loaded(here):
    with start("train", "good.yaml", cwd=here) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while "jaxlib" not in maps.read_text():  # the first large one is being loaded: the command is under way
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (130, "", "interrupted\n")
    assert not (here / "runs").exists()


def test_what_to_go_on_with_can_be_pasted(here, capsys, monkeypatch):
    result = Result(here / "my run", 3, None, {}, 1.0, (), signal.SIGTERM)
    monkeypatch.setattr("deqflow.train.run", lambda *arguments, **named: result, raising=False)
    assert main(["train", "good.yaml", "data={kind: moons, batch_size: 8}", "--quiet"]) == 143
    words = shlex.split(capsys.readouterr().err.partition("go on with: ")[2])
    assert words == ["deqflow", "train", "good.yaml", "data={kind: moons, batch_size: 8}", "--run", str(here / "my run"), "--resume"]


MISSING = [
    *(("list", "pydantic"), ("schema", "pydantic"), ("train good.yaml", "ruamel"), ("train good.yaml", "matplotlib")),
    *(("check good.yaml", "pydantic"), ("eval run", "orbax"), ("sample run", "pydantic")),
]


@pytest.mark.parametrize("command, package", MISSING)
def test_a_plain_installation_names_the_extra(command, package, here):
    """`pip install deqflow` brings the layers; the commands need more."""
    code = f"import sys; sys.modules[{package!r}] = None; from deqflow.cli import main; sys.exit(main({command.split()!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"error: `deqflow {command.split()[0]}` needs the package {package}: pip install 'deqflow[train]'\n"


@pytest.mark.parametrize("command", [["train", "good.yaml"], ["eval", "run"], ["check", "good.yaml"]])
def test_no_device(command, here, trained):
    shutil.copytree(trained, here / "run")
    done = subprocess.run(
        [sys.executable, "-m", "deqflow", *command], capture_output=True, text=True, cwd=here, timeout=60,
        env={**os.environ, "JAX_PLATFORMS": "no_such_device"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX finds no device to compute on; JAX_PLATFORMS is 'no_such_device'")
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away(here):
    with start("schema", cwd=here) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_a_mistake_as_a_process(here):
    with start("train", "missing.yaml", cwd=here) as process:
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert error.splitlines()[0].startswith("error: ")
    assert "Traceback" not in error
