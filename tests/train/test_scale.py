"""Training on several devices and in several processes against training on one; run as a program, the file is what they compute."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from deqflow.bench.collectives import collectives
from deqflow.cli import main
from deqflow.config import parse
from deqflow.data.pipeline import train_batches
from deqflow.data.source import Records
from deqflow.machine.placement import Placement
from deqflow.machine.processes import join, largest
from deqflow.machine.signals import StopRequest
from deqflow.registry import UserError
from deqflow.runs.checkpoint import Checkpoints, Record
from deqflow.runs.metrics import read_rows
from deqflow.train import run
from deqflow.train.assemble import assemble
from deqflow.train.loop import evaluate_split, start
from deqflow.train.step import Program

STEPS, DEVICES = 50, 8
MOONS = {"kind": "moons", "batch_size": 32, "examples": 200, "validation_examples": 70, "test_examples": 50}
# Solvers take all their steps, so that rounding does not decide when they stop.
SOLVER = {"kind": "anderson", "history": 2, "rtol": 0.0, "max_steps": 4}
GRADIENT = {"kind": "implicit", "linear": {"kind": "bicgstab", "rtol": 0.0, "max_steps": 3}}
CASES = {
    "deq": {
        "data": {"kind": "digits", "batch_size": 16},
        "task": "classification",
        "model": {"kind": "deq_classifier", "width": 8, "groups": 2, "stride": 2, "grid": 2, "solver": SOLVER, "gradient": GRADIENT},
    },
    "realnvp": {"data": MOONS, "task": "density", "model": {"kind": "realnvp", "couplings": 2, "width": 8, "depth": 1, "dropout": 0.1}},
    "residual": {"data": MOONS, "task": "density", "model": {"kind": "residual_flow", "blocks": 1, "width": 8, "depth": 1}},
}
COMMON = {
    "seed": 3,
    "optim": {"kind": "adamw", "lr": 1e-2, "clip": 1.0, "weight_decay": 1e-2},
    "train": {"steps": STEPS, "log_every": 10, "ema": 0.9},
}


def environment(devices):
    # Unoptimised programs compile in half the time.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    found = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
    # A device may wait for the others in several threads at once, of which XLA has too few on a machine of few cores.
    return found | {"PJRT_NPROC": str(4 * devices), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """What one subprocess computes on eight devices, as simulated devices have to be asked for before JAX starts, and its folder."""
    folder = tmp_path_factory.mktemp("eight")
    command = [sys.executable, "-W", "error", __file__, "devices", str(folder)]
    ended = subprocess.run(command, env=environment(DEVICES), capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()], folder


def test_eight_devices_as_one(subtests, eight):
    rows, _ = eight
    *trained, resumed, evaluated = rows
    assert [(row["case"], row["full"]) for row in trained] == [(case, full) for case in CASES for full in (False, True)]
    for row in trained:
        with subtests.test(f"{row['case']}, {'full' if row['full'] else 'replicated'}"):
            assert row["difference"] < 1e-9
            assert row["displaced"] == []
            # Whether any sample is still running: in the solver (or stuck there), in the linear solver, and in its own inner loop.
            assert sorted(row["in loops"]) == (["pred[2]", "pred[]", "pred[]"] if row["case"] == "deq" else [])
            assert row["other kinds"] == []
            if row["full"]:
                assert row["gathered"] == row["spread"]  # each parameter that is spread, once
                assert row["kept"] < row["state"] / 3
            else:
                assert row["gathered"] == 0
                assert row["kept"] == row["state"]
            # The gradient, once for each use of a weight (the block of a residual flow and its Jacobian are two), and a few numbers.
            uses = 2 if row["case"] == "residual" else 1
            assert row["parameters"] <= row["reduced"] < uses * row["parameters"] + 512
    with subtests.test("a checkpoint of eight devices, gone on from on one and on two"):
        assert max(resumed["resumed"]) < 1e-9
    with subtests.test("evaluation"):
        assert evaluated["rows"] == [70, 70]
        assert evaluated["difference"] < 1e-9


def test_two_processes_as_one(subtests, tiny, finished, eight, tmp_path):
    folder = eight[1]
    tiny["train"]["sharding"] = "full"
    (folder / "config.json").write_text(json.dumps(tiny))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "error", __file__, "process", str(folder), str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(index)], env=environment(2), **pipes) for index in range(2)]
    words = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], words
    first, second = ([json.loads(line) for line in out.splitlines() if line.startswith("{")] for out, _ in words)  # gloo writes there too

    with subtests.test("the same parameters"):
        assert set(first[0]) == set(CASES)
        assert max([*first[0].values(), *second[0].values()]) < 1e-9

    with subtests.test("a signal to one of them counts in both, and at the same step"):
        assert first[1] == second[1] == {"before": None, "agreed": signal.SIGTERM}

    with subtests.test("process 0 alone tells"):
        assert "step 24/24" in words[0][1]
        assert "step" not in words[1][1]

    rows, expected = (read_rows(path / "metrics.jsonl") for path in (folder / "run", finished.directory))
    with subtests.test("the run directory"):
        assert_same(rows, expected)
        assert first[2]["test"] == second[2]["test"]
        names = {path.name for path in finished.directory.iterdir()}
        assert {path.name for path in (folder / "run").iterdir()} == names

    with subtests.test("gone on from by one process, on one device"):
        shutil.copytree(folder / "run", tmp_path / "run")
        (tmp_path / "run" / "DONE").unlink()
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "24")
        result = run(parse(tiny), tmp_path / "run", resume=True, quiet=True)
        assert_same(read_rows(result.directory / "metrics.jsonl"), expected)


def assert_same(rows, expected):
    """The same numbers but for rounding, which float32 and twenty steps magnify."""
    assert [sorted(row) for row in rows] == [sorted(row) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert (row["step"], row["split"]) == (other["step"], other["split"])
        for name in row.keys() - {"split"}:
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-3), (name, row)


def test_devices_that_cannot_share_a_batch():
    placement = Placement(tuple(jax.local_devices()) * 8)
    placement.require_divisible(96)
    with pytest.raises(
        UserError, match=r"data.batch_size must be a multiple of the number of devices, 8, got 100; choose 96 or 104, or let"
    ):
        placement.require_divisible(100)
    with pytest.raises(UserError, match="got 4; choose 8, or let"):
        placement.require_divisible(4)
    with pytest.raises(UserError, match="of the number of devices, 8 times train.accumulate, 3, got 100; choose 96 or 120, or let"):
        placement.require_divisible(100, 3)
    with pytest.raises(UserError, match=r"a multiple of train.accumulate, 3, got 100; choose 99 or 102$"):
        Placement.here().require_divisible(100, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator", "10.0.0.1:1234"], "belong together"),
        (["--processes", "2", "--process", "0"], "belong together"),
        (["--coordinator", "10.0.0.1:1234", "--processes", "2", "--process", "2"], "--process must be one of 0 .. 1"),
        (["--coordinator", "10.0.0.1", "--processes", "2", "--process", "0"], "with a port"),
    ],
)
def test_processes_that_are_not_told_who_they_are(arguments, message, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tiny.json").write_text(json.dumps(tiny))
    assert main(["train", "tiny.json", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.json"]


def double(tree):
    return jax.tree.map(lambda leaf: leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf, tree)


class Experiment:
    """A case in float64 on some devices: the program, its data and its compiled step."""

    def __init__(self, case, placement):
        config = parse(COMMON | CASES[case])
        assembly = assemble(config)
        self.model = assembly.make_model()
        nnx.update(self.model, double(nnx.state(self.model)))
        self.size = assembly.source.batch_size
        self.records = Double(assembly.source.split("train"))
        self.validation = Double(assembly.source.split("validation"))
        batch = jax.eval_shape(double, assembly.batch)
        self.program = Program(self.model, assembly.task, config.optim.build(), config.train.build(), config.seed, batch, placement)
        self.compiled = self.program.step.lower(self.program.abstract, batch).compile()

    def initial(self):
        return start(self.program, self.model, self.records, self.size)

    def train(self, state, steps):
        share = self.program.placement.share
        batches = train_batches(self.records, batch_size=self.size, seed=3, start=int(state["step"]), **share)
        for _ in range(steps):
            state, _ = self.compiled(state, self.program.placement.batch(next(batches)))
        return state


class Double(Records):
    """Records of float64."""

    def __init__(self, records):
        self.records = records
        self.access = records.access

    def __len__(self):
        return len(self.records)

    def gather(self, indices):
        return {
            name: column.astype(np.float64) if name == "x" and column.dtype == np.float32 else column
            for name, column in self.records.gather(indices).items()
        }


def difference(state, reference):
    """The largest one in what a run goes on from."""
    roles = ("params", "average", "model", "optimizer")
    names = [name for name in state if name.startswith(roles)]
    return max(float(np.abs(np.asarray(state[name]) - reference[name]).max()) for name in names)


def nbytes(leaves, role="", spread=None):
    """The size of the leaves of a role, of all or of those that are spread over the devices or not."""
    return sum(
        leaf.size * leaf.dtype.itemsize
        for name, leaf in leaves.items()
        if name.startswith(role) and spread in (None, not leaf.sharding.is_fully_replicated)
    )


def report(case, experiment, state, reference):
    """How a run on several devices differs from the one on a single device, and what its step exchanges."""
    found = collectives(experiment.compiled.as_text())
    outside = {kind: sum(use.bytes for use in found if use.kind == kind and not use.in_loop) for kind in ("all-gather", "all-reduce")}
    abstract = experiment.program.abstract
    return {
        "case": case,
        "full": experiment.program.placement.full,
        "difference": difference(state, reference),
        "displaced": [name for name, leaf in state.items() if not leaf.sharding.is_equivalent_to(abstract[name].sharding, leaf.ndim)],
        "in loops": [shape for use in found if use.in_loop for shape in use.shapes],
        "other kinds": sorted({use.kind for use in found} - {"all-gather", "all-reduce"}),
        "gathered": outside["all-gather"],
        "reduced": outside["all-reduce"],
        "parameters": nbytes(abstract, "params"),
        "spread": nbytes(abstract, "params", spread=True),
        "state": nbytes(abstract),
        "kept": sum(leaf.addressable_data(0).nbytes for leaf in state.values()),
    }


def on_eight_devices(folder):
    devices = tuple(jax.devices())
    kept = {}
    for case in CASES:
        one = kept[case, "one"] = Experiment(case, Placement(devices[:1]))
        state = one.train(one.initial(), STEPS)
        reference = {name: np.asarray(leaf) for name, leaf in state.items()}
        np.savez(folder / f"{case}.npz", **reference)
        for full in (False, True):
            several = kept[case, full] = Experiment(case, Placement(devices, full))
            state = several.initial()
            if case == "realnvp" and full:
                state = several.train(state, STEPS // 2)
                with Checkpoints(folder / "checkpoints") as checkpoints:
                    checkpoints.save(state, Record())
            print(json.dumps(report(case, several, several.train(state, STEPS - int(state["step"])), reference)), flush=True)

    reference = np.load(folder / "realnvp.npz")
    differences = []
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for fewer in (kept["realnvp", "one"], Experiment("realnvp", Placement(devices[:2], full=True))):
            state, _ = checkpoints.restore(fewer.program.abstract)
            differences.append(difference(fewer.train(state, STEPS - STEPS // 2), reference))
        state = {number: checkpoints.restore(kept["realnvp", number].program.abstract)[0] for number in ("one", True)}
    print(json.dumps({"resumed": differences}))

    rows = [
        evaluate_split(each.program, state[number], each.validation, each.size) for number in state if (each := kept["realnvp", number])
    ]
    worst = max(float(np.abs(rows[0][name] - rows[1][name]).max()) for name in rows[0])
    print(json.dumps({"rows": [len(row["nats"]) for row in rows], "difference": worst}))


def in_a_process(folder, port, index):
    join(f"127.0.0.1:{port}", 2, index)
    differences = {}
    for case, full in {"deq": True, "realnvp": False, "residual": True}.items():
        experiment = Experiment(case, Placement.everywhere(full=full))
        state = experiment.train(experiment.initial(), STEPS)
        differences[case] = difference(experiment.program.placement.fetched(state), np.load(folder / f"{case}.npz"))
    print(json.dumps(differences))

    with StopRequest(largest) as stop:
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        before = stop.signal
        stop.agree()
    print(json.dumps({"before": before, "agreed": stop.signal}))

    jax.config.update("jax_enable_x64", False)
    result = run(parse(json.loads((folder / "config.json").read_text())), folder / "run")
    print(json.dumps({"test": result.test}))


if __name__ == "__main__":
    if sys.argv[1] == "devices":
        on_eight_devices(Path(sys.argv[2]))
    else:
        in_a_process(Path(sys.argv[2]), *map(int, sys.argv[3:]))
