"""Steps per second of the trainer over those of the same compiled step in a bare loop, its batches in memory.

python benchmarks/trainer_overhead.py

Both start from the same state and see the same batches, so a solver inside does the same work in both. They take turns, and the
median of the ratios counts. The trainer logs, reports progress and keeps time as it always does; evaluations and checkpoints, which
the bare loop does not have, fall outside the measured steps.
"""

import argparse
import io
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from common import ROOT, write_result
from rich.console import Console

from deqflow.config import load
from deqflow.data.pipeline import train_batches
from deqflow.train.assemble import assemble
from deqflow.train.checkpoint import Checkpoints, Record
from deqflow.train.loop import Training, start
from deqflow.train.metrics import MetricsWriter
from deqflow.train.progress import Progress
from deqflow.train.signals import StopRequest

CONFIGS = {"digits_deq": 100, "checkerboard_realnvp": 400}  # steps measured at a time
LOG_EVERY = 20
WARMUP = LOG_EVERY + 1  # the trainer has waited for the row of step 20 by then, and just so at the end: no step is half counted


def measure(name: str, steps: int, repeats: int) -> dict[str, float]:
    """Both speeds, in turns, for one config."""
    total = WARMUP + steps
    settings = {"steps": total + 1, "log_every": LOG_EVERY, "eval_every": 10**6, "checkpoint_every": 10**6}
    config = load(ROOT / "configs" / f"{name}.yaml", [f"train.{name}={value}" for name, value in settings.items()])
    assembly = assemble(config)
    model = assembly.make_model()
    program = assembly.program(model)
    records = {split: assembly.source.split(split) for split in ("train", "validation")}
    size = assembly.source.batch_size
    first = {leaf: np.asarray(value) for leaf, value in start(program, model, records["train"], size).items()}

    def fresh() -> dict[str, jax.Array]:  # the step takes its state's memory
        return {leaf: jax.numpy.array(value) for leaf, value in first.items()}

    batches = list(itertools.islice(train_batches(records["train"], batch_size=size, seed=config.seed), total))

    def bare() -> float:
        state = fresh()
        for batch in batches[:WARMUP]:
            state, _ = program.step(state, batch)
        jax.block_until_ready(state)
        began = time.perf_counter()
        for batch in batches[WARMUP:]:
            state, _ = program.step(state, batch)
        jax.block_until_ready(state)
        return steps / (time.perf_counter() - began)

    def trained() -> float:
        times: list[float] = []

        def watched():  # takes the time when the trainer asks for a batch
            stream = train_batches(records["train"], batch_size=size, seed=config.seed)
            for index, batch in enumerate(stream):
                if index in (WARMUP, total):
                    times.append(time.perf_counter())
                yield batch

        with (
            tempfile.TemporaryDirectory() as folder,
            Checkpoints(Path(folder) / "checkpoints") as checkpoints,
            MetricsWriter(Path(folder)) as writer,
            Progress(total + 1, 0, Console(file=io.StringIO(), force_terminal=True, width=120)) as progress,
            StopRequest() as stop,
        ):
            training = Training(program, records["validation"], size, writer, progress, checkpoints, stop)
            training.fit(fresh(), Record(), watched())
        return steps / (times[1] - times[0])

    for compiled in (bare, trained):
        compiled()
    pairs = []
    for repeat in range(repeats):  # either goes first as often, as the machine's speed drifts
        if repeat % 2:
            second = trained()
            pairs.append((bare(), second))
        else:
            pairs.append((bare(), trained()))
    return {
        "bare_steps_per_second": statistics.median(pair[0] for pair in pairs),
        "trainer_steps_per_second": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
        "smallest_ratio": min(pair[1] / pair[0] for pair in pairs),
        "largest_ratio": max(pair[1] / pair[0] for pair in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=16)
    arguments = parser.parse_args()
    began = time.perf_counter()
    metrics = {name: measure(name, steps, arguments.repeats) for name, steps in CONFIGS.items()}
    write_result("trainer_overhead", metrics, {name: {"ratio": ">= 0.95"} for name in CONFIGS}, time.perf_counter() - began)


if __name__ == "__main__":
    main()
