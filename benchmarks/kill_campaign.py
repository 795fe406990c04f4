"""Trainers killed at random moments and resumed, against the same run that is left alone: bitwise the same, every time.

python benchmarks/kill_campaign.py --kills 60

A process is killed (SIGKILL) after a time drawn uniformly from that which a whole run takes, its start included, and then resumed, until
one ends by itself. What is then on disk is compared with the reference: metrics.jsonl byte by byte, the last checkpoint (parameters,
averages, optimizer, counters) bit by bit, and the test's numbers.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, write_result

from deqflow.runs.checkpoint import Checkpoints

CONFIGS = {
    "deq": """
data: {kind: digits, batch_size: 32}
model: {kind: deq_classifier, width: 8, groups: 4, stride: 2, grid: 2, solver: {kind: anderson, history: 3, rtol: 1e-3, max_steps: 20}}
task: {kind: classification}
optim: {kind: adamw, lr: {kind: cosine, peak: 3e-3, warmup: 20}, clip: 1.0}
train: {steps: 600, log_every: 20, eval_every: 60, checkpoint_every: 30, ema: 0.95}
""",
    "flow": """
data: {kind: moons, batch_size: 64, examples: 1000, validation_examples: 200, test_examples: 200}
model: {kind: realnvp, couplings: 2, width: 16, depth: 1, dropout: 0.1}
task: {kind: density}
optim: {kind: adamw, lr: {kind: cosine, peak: 1e-2, warmup: 20}, clip: 1.0}
train: {steps: 1200, log_every: 20, eval_every: 150, checkpoint_every: 50, ema: 0.95}
""",
}


def start(config: Path, run: Path) -> subprocess.Popen[bytes]:
    """A trainer: a new one, or where the last one came as far as to leave something, one that goes on."""
    resume = ["--resume"] if run.exists() else []
    command = [sys.executable, "-m", "deqflow", "train", str(config), "--run", str(run), "--quiet", *resume]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(config.parent / "cache")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def phase(run: Path, steps: int, process: int) -> str:
    """What the process that died just now was doing, by what it left."""
    checkpoints, lock = run / "checkpoints", run / ".lock"
    if not lock.exists() or f"process {process} " not in lock.read_text():
        return "loading"
    if (run / "DONE").exists():
        return "end"
    if any(checkpoints.glob("dropped-*")):
        return "dropping a checkpoint"
    if any(checkpoints.glob("*.orbax-checkpoint-tmp*")):
        return "saving"
    if (checkpoints / str(steps)).exists():
        return "testing and drawing"
    return "training" if any(checkpoints.glob("[0-9]*")) else "compiling and the first steps"


def outcome(run: Path, steps: int) -> tuple[bytes, dict[str, bytes], dict[str, float]]:
    """All that must be the same."""
    with Checkpoints(run / "checkpoints") as checkpoints:
        leaves, record = checkpoints.restore(step=steps)
    arrays = {name: np.asarray(leaf).tobytes() for name, leaf in leaves.items()} | {"record": repr(record).encode()}
    return (run / "metrics.jsonl").read_bytes(), arrays, json.loads((run / "DONE").read_text())["test"]


def finish(config: Path, run: Path) -> float:
    """The seconds that an undisturbed process takes."""
    began = time.perf_counter()
    process = start(config, run)
    _, error = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the trainer failed: {error.decode()}")
    return time.perf_counter() - began


def campaign(name: str, kills: int, folder: Path, rng: random.Random) -> dict[str, object]:
    """Runs of one config, each killed again and again until it ends, until there were so many kills."""
    config = folder / f"{name}.yaml"
    config.write_text(CONFIGS[name])
    steps = int(CONFIGS[name].partition("train: {steps: ")[2].partition(",")[0])
    finish(config, folder / f"{name}-compiles")
    whole = finish(config, folder / f"{name}-reference")
    reference = outcome(folder / f"{name}-reference", steps)
    phases: collections.Counter[str] = collections.Counter()
    runs = resumed = same = 0
    while phases.total() < kills:
        run = folder / f"{name}-{runs}"
        before = phases.total()
        while True:
            began = time.perf_counter()
            process = start(config, run)
            try:
                _, error = process.communicate(timeout=rng.uniform(0.0, whole))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                phases[doing := phase(run, steps, process.pid)] += 1
                print(name, phases.total(), doing, flush=True)
                continue
            if process.returncode != 0:
                raise RuntimeError(f"a resumed trainer failed: {error.decode()}")
            break
        if phases.total() == before:  # the machine is faster now
            whole = min(whole, time.perf_counter() - began)
        resumed += phases.total() > before
        same += outcome(run, steps) == reference
        runs += 1
    return {
        "kills": phases.total(),
        "runs": runs,
        "resumed": resumed,
        "bitwise_equal": same,
        "phases": dict(phases),
        "seconds_undisturbed": round(whole, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="of both configs together")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rng = random.Random(arguments.seed)
        metrics = {name: campaign(name, arguments.kills // len(CONFIGS), Path(folder), rng) for name in CONFIGS}
    expected = {name: {"bitwise_equal": result["runs"]} for name, result in metrics.items()}
    write_result("kill_campaign", metrics, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
