"""Steps per second of the trainer over those of the same compiled step in a bare loop, its batches in memory.

python benchmarks/trainer_overhead.py

Both start from the same state and see the same batches, so a solver inside does the same work in both. They take turns, and the
median of the ratios counts. The trainer logs, reports progress and keeps time as it always does; evaluations and checkpoints, which
the bare loop does not have, fall outside the measured steps.

Then the trainer with a checkpoint every 200 steps against itself without, and the seconds from the start of a process to its first row
of numbers, where nothing is compiled yet and where all was compiled before.
"""

import argparse
import dataclasses
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from common import ROOT, write_result
from rich.console import Console

from deqflow.config import load
from deqflow.data.pipeline import train_batches
from deqflow.machine.signals import StopRequest
from deqflow.runs.checkpoint import Checkpoints, Record
from deqflow.runs.metrics import MetricsWriter
from deqflow.runs.progress import Progress
from deqflow.train.assemble import assemble
from deqflow.train.loop import Training, start

CONFIGS = {"digits_deq": 100, "checkerboard_realnvp": 400}  # steps measured at a time
CHECKPOINT_EVERY = 200
CHECKPOINTS = 3  # in the steps that are measured
LOG_EVERY = 20
STARTS = 7  # pairs of them, each with an empty cache of its own: the first fills it, the second finds it full
EXPECTED = {"ratio": ">= 0.97", "ratio_with_checkpoints": ">= 0.95", "warm_over_cold": "<= 0.5"}
WARMUP = LOG_EVERY + 1  # the trainer has waited for the row of step 20 by then, and just so at the end: no step is half counted


class Study:
    """One config, and the ways to run its steps."""

    def __init__(self, name: str, steps: int) -> None:
        self.total = WARMUP + max(steps, CHECKPOINTS * CHECKPOINT_EVERY)
        never = 10**6
        settings = {"steps": self.total + 1, "log_every": LOG_EVERY, "eval_every": never, "checkpoint_every": never}
        config = load(ROOT / "configs" / f"{name}.yaml", [f"train.{name}={value}" for name, value in settings.items()])
        assembly = assemble(config)
        model = assembly.make_model()
        self.seed, self.size = config.seed, assembly.source.batch_size
        self.program = assembly.program(model)
        self.settings = self.program.settings
        self.records = {split: assembly.source.split(split) for split in ("train", "validation")}
        self.first = {leaf: np.asarray(value) for leaf, value in start(self.program, model, self.records["train"], self.size).items()}

    def fresh(self) -> dict[str, jax.Array]:
        """The first state; the step takes its memory."""
        return {leaf: jax.numpy.array(value) for leaf, value in self.first.items()}

    def batches(self):
        return train_batches(self.records["train"], batch_size=self.size, seed=self.seed)

    def bare(self, steps: int) -> float:
        """Steps per second of the compiled step in a loop."""
        batches = list(itertools.islice(self.batches(), WARMUP + steps))
        state = self.fresh()
        for batch in batches[:WARMUP]:
            state, _ = self.program.step(state, batch)
        jax.block_until_ready(state)
        began = time.perf_counter()
        for batch in batches[WARMUP:]:
            state, _ = self.program.step(state, batch)
        jax.block_until_ready(state)
        return steps / (time.perf_counter() - began)

    def trained(self, steps: int, **settings: int) -> float:
        """Steps per second of the trainer."""
        times: list[float] = []
        self.program.settings = dataclasses.replace(self.settings, steps=WARMUP + steps + 1, **settings)

        def watched():  # takes the time when the trainer asks for a batch
            for index, batch in enumerate(self.batches()):
                if index in (WARMUP, WARMUP + steps):
                    times.append(time.perf_counter())
                yield batch

        with (
            tempfile.TemporaryDirectory() as folder,
            Checkpoints(Path(folder) / "checkpoints") as checkpoints,
            MetricsWriter(Path(folder)) as writer,
            Progress(WARMUP + steps + 1, 0, Console(file=io.StringIO(), force_terminal=True, width=120)) as progress,
            StopRequest() as stop,
        ):
            training = Training(self.program, self.records["validation"], self.size, writer, progress, checkpoints, stop)
            training.fit(self.fresh(), Record(), watched())
        return steps / (times[1] - times[0])


def in_turns(first, second, repeats: int) -> list[tuple[float, float]]:
    """Pairs of what two functions measure; either goes first as often, as the machine's speed drifts."""
    for compiled in (first, second):
        compiled()
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            later = second()
            pairs.append((first(), later))
        else:
            pairs.append((first(), second()))
    return pairs


def start_up(name: str, cache: Path) -> float:
    """Seconds from the start of `deqflow train` to its first row of numbers."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / "metrics.jsonl"
        command = [sys.executable, "-m", "deqflow", "train", str(ROOT / "configs" / f"{name}.yaml"), "train.log_every=1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
        began = time.perf_counter()
        with subprocess.Popen([*command, "--run", str(metrics.parent), "--quiet"], env=environment, stderr=subprocess.DEVNULL) as process:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None:
                    raise RuntimeError("the trainer ended before its first row")
                time.sleep(0.005)
            seconds = time.perf_counter() - began
            process.terminate()
    return seconds


def measure(name: str, steps: int, repeats: int) -> dict[str, float]:
    """All that is measured of one config."""
    study = Study(name, steps)
    pairs = in_turns(lambda: study.bare(steps), lambda: study.trained(steps), repeats)
    longer = CHECKPOINTS * CHECKPOINT_EVERY
    saving = in_turns(lambda: study.trained(longer), lambda: study.trained(longer, checkpoint_every=CHECKPOINT_EVERY), max(repeats // 2, 1))
    starts = []
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as cache:
            starts.append((start_up(name, Path(cache)), start_up(name, Path(cache))))
    return {
        "bare_steps_per_second": statistics.median(pair[0] for pair in pairs),
        "trainer_steps_per_second": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
        "smallest_ratio": min(pair[1] / pair[0] for pair in pairs),
        "largest_ratio": max(pair[1] / pair[0] for pair in pairs),
        "ratio_with_checkpoints": statistics.median(pair[1] / pair[0] for pair in saving),
        "start_up_seconds_cold": statistics.median(cold for cold, _ in starts),
        "start_up_seconds_warm": statistics.median(warm for _, warm in starts),
        "warm_over_cold": statistics.median(warm / cold for cold, warm in starts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=16)
    arguments = parser.parse_args()
    began = time.perf_counter()
    metrics = {name: measure(name, steps, arguments.repeats) for name, steps in CONFIGS.items()}
    write_result("trainer_overhead", metrics, dict.fromkeys(CONFIGS, EXPECTED), time.perf_counter() - began)


if __name__ == "__main__":
    main()
