"""However a config or a command line is mangled: it is done, or refused with a message, and nothing half-made stays on disk.

Everything up to the first step is real: the data are read, the model is made and traced. The step itself is not compiled, and there is no
training.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx

from deqflow.bench.sizing import Check
from deqflow.cli import main
from deqflow.config import parse
from deqflow.machine.flops import Work
from deqflow.registry import UserError, families, kinds
from deqflow.train.assemble import assemble
from deqflow.train.loop import Training

ROOT = Path(__file__).resolve().parent.parent
FLOW = """
seed: 3
data:  {kind: moons, batch_size: 8, examples: 40, validation_examples: 20, test_examples: 20}
model: {kind: realnvp, couplings: 2, width: 8, depth: 1}
task:  {kind: density}
optim: {kind: adamw, lr: {kind: cosine, peak: 1e-2, warmup: 2}, clip: 1.0}
train: {steps: 2, guard: {spike: 5}}
"""
DEQ = """
data:  {kind: digits, batch_size: 8}
model: {kind: deq_classifier, width: 8, groups: 4, stride: 2, grid: 2, solver: {kind: anderson, history: 3}, gradient: {kind: implicit}}
task:  {kind: classification}
optim: {kind: adamw, lr: 1e-3}
train: {steps: 2}
"""
# No number in between: a model of a hundred thousand layers is no mistake, and takes its time.
VALUES = [None, True, False, -1, 0, 1, 3, 2**31, 2**63, 2**70, 0.5, 1.5, -0.1, 1e-320, 1e30, float("nan"), float("inf"), "", "x", ".", "/"]
VALUES += [
    [],
    {},
    [1],
    ["a", 2],
    {"kind": "x"},
    {"kind": 3},
    "é\u202e",
    "a" * 3000,
    *(kind for family in families() for kind in kinds(family)),
]
WORDS = [
    "train",
    "eval",
    "sample",
    "check",
    "list",
    "schema",
    "flow.yaml",
    "deq.yaml",
    "absent.yaml",
    "folder",
    "run",
    "-n",
    "--seed",
    "--step",
]
WORDS += [
    "--run",
    "--resume",
    "--quiet",
    "--allow-config-change",
    "--json",
    "--split",
    "test",
    "--length",
    "--out",
    "--help",
    "--version",
    "--",
]
WORDS += [
    "",
    " ",
    "=",
    "a=b",
    "train.steps=0",
    "train.steps=1",
    "model.width=x",
    "model={}",
    "seed=-1",
    "data.kind=tfds",
    "plugins=[x]",
    "\0",
]
WORDS += ["0", "-1", "9" * 30, "1.5", "é", "/dev/null", "a" * 300, "../..", "flow.yaml/run", "folder/run"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with two configs and a folder; what is accepted is built, and stopped before its first step."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "deq.yaml").write_text(DEQ)
    (tmp_path / "folder").mkdir()

    def check(config):
        assembly = assemble(config)
        program = assembly.program(nnx.eval_shape(assembly.make_model))
        return Check({}, {name: (leaf.shape, str(leaf.dtype)) for name, leaf in program.abstract.items()}, 1, Work(1.0, True), 1, None)

    def fit(*arguments):
        raise UserError("this is as far as it goes")

    monkeypatch.setattr("deqflow.bench.check", check, raising=False)
    monkeypatch.setattr(Training, "fit", fit)
    return tmp_path


def outcome(capsys, here, arguments):
    """The exit code of a command that may only succeed or be refused, in words, and leave what was there."""
    before = sorted(here.rglob("*"))
    try:
        code = main(arguments)
    except SystemExit as stopped:  # as argparse ends
        code = stopped.code or 0
    error = capsys.readouterr().err
    assert code in (0, 2), arguments
    assert ("error: " in error) == (code == 2), (arguments, error)
    assert "Traceback" not in error and len(error) < 10_000
    assert sorted(here.rglob("*")) == before, arguments
    return code


def nodes(tree, path=()):
    """The paths of all entries of a config."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from nodes(value, (*path, key))


def mangled(rng, tree):
    """A copy of a config with one to four mistakes."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice([1, 2, 3, 4])):
        *above, key = rng.choice(list(nodes(tree)))
        parent = tree
        for step in above:
            parent = parent[step]
        match rng.randrange(5):
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice([str(key)[:-1], f"{key}s", "kind", ""])] = parent.pop(key)
            case 2:
                *others, other = rng.choice(list(nodes(tree)))
                value = tree
                for step in (*others, other):
                    value = value[step]
                parent[key] = json.loads(json.dumps(value))
            case _:
                parent[key] = rng.choice(VALUES)
    return tree


def written(tree):
    """A config as YAML, which takes JSON but for numbers that are not finite."""
    text = json.dumps(tree)
    for python, yaml in (("NaN", ".nan"), ("-Infinity", "-.inf"), ("Infinity", ".inf")):
        text = text.replace(f": {python}", f": {yaml}").replace(f"[{python}", f"[{yaml}")
    return text


@pytest.mark.parametrize("text", [FLOW, DEQ], ids=["flow", "deq"])
def test_mangled_configs(text, here, capsys):
    rng = random.Random(text)
    tree = parse(text).to_dict()
    codes = []
    for index in range(250):
        (here / "mangled.yaml").write_text(written(mangled(rng, tree)))
        command = ["train", "mangled.yaml", "--run", "a/b/run", "--quiet"] if index % 10 == 0 else ["check", "mangled.yaml"]
        codes.append(outcome(capsys, here, command))
    assert codes.count(2) > 100
    assert codes.count(0) > 5


def test_mangled_command_lines(here, capsys):
    rng = random.Random(0)
    codes = []
    for _ in range(200):
        arguments = [rng.choice(WORDS[:6]), *(rng.choice(WORDS) for _ in range(rng.randrange(5)))]
        codes.append(outcome(capsys, here, arguments if rng.random() < 0.9 else rng.sample(WORDS, 3)))
    assert {0, 2} == set(codes)


SAMPLE = [
    ["train", "flow.yaml", "model.width=0", "--run", "run"],
    ["train", "flow.yaml", "task=classification", "--run", "a/run"],
    ["check", "deq.yaml", "model.solver=[]", "train.steps=\udcff"],
]


@pytest.mark.parametrize("arguments", SAMPLE)
def test_some_as_processes(arguments, here):
    before = sorted(here.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "deqflow", *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert sorted(here.rglob("*")) == before
