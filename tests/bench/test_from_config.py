"""`deqflow bench memory` on a config."""

import json

import jax
import pytest

from deqflow.bench.from_config import of_config
from deqflow.cli import main
from deqflow.config import parse
from deqflow.implicit import JacobianFree, Picard

CONFIG = """
data: {kind: digits, batch_size: 4}
model: {kind: deq_classifier, width: 4, groups: 2, grid: 2, cell: {kind: conv, groups: 2}}
task: classification
optim: {kind: adamw, lr: 1e-3}
train: {steps: 2}
"""
FLOW = """
data: {kind: moons, batch_size: 4}
model: {kind: realnvp, couplings: 1, width: 4}
task: density
optim: {kind: adamw, lr: 1e-3}
train: {steps: 2}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deq.yaml").write_text(CONFIG)
    (tmp_path / "flow.yaml").write_text(FLOW)
    return tmp_path


def test_the_problem_is_that_of_training():
    problem = of_config(parse(CONFIG))
    params, _, batch = problem.arguments
    assert (batch["x"].shape, batch["x"].dtype, batch["y"].shape) == ((4, 8, 8, 1), "uint8", (4,))
    assert 0 < batch["x"].max() < 17 and batch["y"].min() >= 0 and batch["y"].max() < 10
    gradient, *numbers = jax.eval_shape(problem.function(Picard(), JacobianFree()), *problem.arguments)
    assert [leaf.shape for leaf in gradient] == [leaf.shape for leaf in params.values()]
    assert [number.shape for number in numbers] == [(), (), ()]


def test_the_command(here, capsys):
    words = ["--steps", "2", "--methods", "reversible,unrolled", "--solver", "newton", "--out", "memory.json", "data.batch_size=3"]
    assert main(["bench", "memory", "deq.yaml", *words]) == 0
    out = capsys.readouterr().out
    reversible, unrolled = json.loads((here / "memory.json").read_text())
    assert (reversible["method"], reversible["steps"], reversible["status"]) == ("reversible", 2, "ok")
    assert 1e-4 < reversible["gradient_error"] < 1  # two steps and not those of the config's solver, which converges
    assert reversible["compiled_bytes"] > 0 and reversible["seconds"] > 0
    assert unrolled["status"].startswith("failed: the gradient Unrolled differentiates the solver's steps, and those of Newton do not")
    assert "measured" in out and "unrolled" in out
    assert out.split()[-2:] == ["memory.json", "memory.png"]
    assert (here / "memory.png").stat().st_size > 1000


MISTAKES = {
    "flow.yaml": "model realnvp has no equilibrium layer",
    "deq.yaml --methods implicit,unroled": "unknown method 'unroled'; did you mean 'unrolled'?",
    "deq.yaml --solver andersen": "unknown solver 'andersen'; did you mean 'anderson'?",
    "deq.yaml --out missing/memory.json": "there is no folder missing",
    "deq.yaml --out memory.txt": "ends in .json",
    "deq.yaml --plot memory.doc": "ends in .png or .pdf or .svg",
    "deq.yaml --out folder.json": "it is a folder",
    "deq.yaml task=density": "deq_classifier",
    "missing.yaml": "no such file",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes(words, here, capsys):
    (here / "folder.json").mkdir()
    assert main(["bench", "memory", *words.split()]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("error: ")) == ("", 1)
    assert MISTAKES[words] in error
    assert len(list(here.iterdir())) == 3


@pytest.mark.parametrize("words", ["--steps 10,ten", "--steps 0", "--steps ,", "--steps 1.5", "--limit 0", "--limit much", "--fly"])
def test_wrong_command_lines(words, here, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "memory", "deq.yaml", *words.split()])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("error:") == 1
