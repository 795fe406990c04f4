"""Training from a config to a finished run directory, in the order in which it happens."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from deqflow.config import Config, load, parse
from deqflow.data.pipeline import eval_batches, train_batches
from deqflow.data.source import Records
from deqflow.registry import UserError
from deqflow.train.assemble import assemble
from deqflow.train.checkpoint import Checkpoints, Record
from deqflow.train.curves import learning_curves
from deqflow.train.directory import RunDirectory, default_directory
from deqflow.train.metrics import MetricsWriter, read_rows
from deqflow.train.progress import Progress
from deqflow.train.signals import StopRequest
from deqflow.train.state import Leaves
from deqflow.train.step import Program, Stream, random_key


@dataclasses.dataclass(frozen=True)
class Result:
    """What a call of `run` ended with.

    Attributes:
      directory: the run directory.
      step: updates done.
      selected_step: the step whose parameters were tested; `None` if the run was interrupted.
      test: the task's numbers on the test split; empty if the run was interrupted.
      seconds: time spent in training steps, validation and checkpoints of this call, compilation included.
      pictures: the files that were drawn.
      interrupted: the signal that stopped the run, or `None`.
    """

    directory: Path
    step: int
    selected_step: int | None
    test: dict[str, float]
    seconds: float
    pictures: tuple[Path, ...]
    interrupted: signal.Signals | None = None


def run(
    config: Config | Mapping[str, Any] | str | Path,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    overrides: Sequence[str] = (),
    quiet: bool = False,
    console: Console | None = None,
) -> Result:
    """Train what a config describes, evaluate it on the test split and draw its pictures.

    The same as the command `deqflow train`.

    Args:
      config: a file, the same as nested dictionaries, or a loaded `Config`.
      run_dir: where to write; by default `runs/NAME` after the file's name, numbered if that is taken.
      resume: go on from the newest checkpoint in `run_dir`, if there is one; a finished run is returned as it is.
      overrides: changes such as `"train.steps=100"`, for a file or dictionaries.
      quiet: show no progress.
      console: where progress is shown; standard error by default.

    Returns:
      The result; also after SIGINT or SIGTERM, with a checkpoint of the last step saved.

    Raises:
      UserError: for what the user can mend: a config, data or directory that does not fit, a damaged checkpoint, a loss that
        is not finite.
    """
    if isinstance(config, (str, Path)):
        config = load(config, overrides)
    elif not isinstance(config, Config):
        config = parse(config, overrides)
    name = Path(config.files[0]).stem if config.files else "run"
    directory = RunDirectory(Path(run_dir)) if run_dir is not None else default_directory(name, resume=resume)
    if resume:
        directory.require_same(config)
        if (done := directory.result()) is not None:
            return Result(
                directory.path,
                done["step"],
                done["selected_step"],
                done["test"],
                0.0,
                tuple(directory.path / picture for picture in done["pictures"]),
            )
    else:
        directory.require_new()

    # All that can be wrong with the config, the data or the model shows before anything is written.
    assembly = assemble(config)
    model = assembly.make_model()
    program = assembly.program(model)
    splits = {split: assembly.source.split(split) for split in ("train", "validation", "test")}
    if not resume:
        directory.create(config)

    settings = program.settings
    console = console or Console(stderr=True)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(directory.checkpoints, settings.keep))
        if resume and checkpoints.steps:
            state, record = checkpoints.restore(program.abstract)
        else:
            state, record = start(program, model, splits["train"], assembly.source.batch_size), Record()
        begin = int(state["step"])
        writer = stack.enter_context(MetricsWriter(directory.path, begin or None))
        progress = stack.enter_context(Progress(settings.steps, begin, console, quiet))
        if begin:
            progress.message(f"resumed from the checkpoint of step {begin}")
        batches = stack.enter_context(
            contextlib.closing(train_batches(splits["train"], batch_size=assembly.source.batch_size, seed=config.seed, start=begin))
        )
        with StopRequest() as stop:
            training = Training(program, splits["validation"], assembly.source.batch_size, writer, progress, checkpoints, stop)
            state, record = training.fit(state, record, batches)
        step = int(state["step"])
        seconds = training.seconds
        if stop.signal is not None:
            return Result(directory.path, step, None, {}, seconds, (), stop.signal)

        selected = record.best_step if settings.select == "best" and record.best_step is not None else step
        with progress.pause("testing"):
            if selected != step:
                state, _ = checkpoints.restore(program.abstract, selected)
            rows = evaluate_split(program, state, splits["test"], assembly.source.batch_size)
            test = assembly.task.summarize(rows)
            writer.write(step, "test", {**test, "selected_step": selected})
            pictures = _draw(program, state, rows, splits["test"], directory, writer, step)
        directory.finish(
            {
                "step": step,
                "selected_step": selected,
                "test": test,
                "pictures": [str(picture.relative_to(directory.path)) for picture in pictures],
                "seconds": seconds,
            }
        )
    return Result(directory.path, step, selected, test, seconds, pictures)


class Training:
    """The loop, with what it reports to.

    Attributes:
      seconds: how long `fit` took.
    """

    def __init__(
        self,
        program: Program,
        validation: Records,
        batch_size: int,
        writer: MetricsWriter,
        progress: Progress,
        checkpoints: Checkpoints,
        stop: StopRequest,
    ) -> None:
        self.program = program
        self.validation = validation
        self.batch_size = batch_size
        self.writer = writer
        self.progress = progress
        self.checkpoints = checkpoints
        self.stop = stop
        self.seconds = 0.0
        self._began = time.perf_counter()
        self._pending: tuple[int, Leaves] | None = None

    def fit(self, state: Leaves, record: Record, batches: Iterator[Mapping[str, np.ndarray]]) -> tuple[Leaves, Record]:
        """Train until the last step, the end of patience or a request to stop.

        Each step: take the batch; update; then, each where it is due, log, validate and save. The rows of a step are on disk
        before its checkpoint, so that a run resumed from there has them all.
        """
        settings = self.program.settings
        step = int(state["step"])
        while step < settings.steps and not self._out_of_patience(record) and self.stop.signal is None:
            state, means = self.program.step(state, next(batches))
            step += 1
            self._log()  # of the step before: by now its numbers are there, and nothing waits for them
            last = step == settings.steps
            if step % settings.log_every == 0 or last:
                self._pending = (step, means)
            better = False
            if step % settings.eval_every == 0 or last:
                self._log()
                with self.progress.pause("validating"):
                    record, better = self._validate(state, record, step)
            ends = last or self.stop.signal is not None or self._out_of_patience(record)
            if better or ends or step % settings.checkpoint_every == 0:
                self._log()
                self.writer.sync()
                with self.progress.pause("saving"):
                    self.checkpoints.save(state, record)
            self.progress.update(step)
        self.seconds = time.perf_counter() - self._began
        return state, record

    def _out_of_patience(self, record: Record) -> bool:
        patience = self.program.settings.patience
        return patience is not None and record.stale >= patience

    def _validate(self, state: Leaves, record: Record, step: int) -> tuple[Record, bool]:
        task = self.program.task
        numbers = task.summarize(evaluate_split(self.program, state, self.validation, self.batch_size))
        self.writer.write(step, "validation", numbers)
        value = numbers[task.monitor]
        shown = "  ".join(f"{name} {number:.4g}" for name, number in numbers.items())
        self.progress.message(f"step {step}: validation {shown}")
        if not math.isfinite(value):
            return dataclasses.replace(record, stale=record.stale + 1), False
        gain = math.inf if record.best_value is None else (value - record.best_value) * (1 if task.maximize else -1)
        if gain < 0:
            return dataclasses.replace(record, stale=record.stale + 1), False
        # Of equals the later is kept, having seen more data, but it is no reason for more patience.
        return Record(step, value, 0 if gain > 0 else record.stale + 1), True

    def _log(self) -> None:
        """Write the row that is waiting, if any."""
        if self._pending is None:
            return
        step, means = self._pending
        self._pending = None
        numbers = {name: float(value) for name, value in jax.device_get(means).items()}
        self.writer.write(step, "train", numbers)
        self.writer.timing(step, time.perf_counter() - self._began, self.progress.steps_per_second or 0.0)
        if not math.isfinite(numbers["loss"]):
            saved = self.checkpoints.steps
            remedy = "lower the learning rate, clip gradients (optim.clip) or look at the data"
            where = f"; the last checkpoint is of step {saved[-1]}" if saved else ""
            raise UserError(f"the training loss became {numbers['loss']} within the last steps before step {step}: {remedy}{where}")
        self.progress.update(step, numbers)


def evaluate_split(program: Program, state: Leaves, records: Records, batch_size: int) -> dict[str, np.ndarray]:
    """The values of the task's `evaluate` for every example of a split, with the labels as `y` where there are labels."""
    parts: list[dict[str, np.ndarray]] = []
    with contextlib.closing(eval_batches(records, batch_size=batch_size)) as batches:
        for index, batch in enumerate(batches):
            valid = batch.pop("mask") > 0
            values = jax.device_get(program.evaluate(state, batch, index))
            labels = {"y": batch["y"]} if "y" in batch else {}
            parts.append({name: np.asarray(column)[valid] for name, column in {**values, **labels}.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def start(program: Program, model: Any, train: Records, batch_size: int) -> Leaves:
    """The state at step 0, after data-dependent initialisation with the first training batch."""
    with contextlib.closing(train_batches(train, batch_size=batch_size, seed=program.seed)) as batches:
        batch = jax.tree.map(jnp.asarray, next(batches))
    model.train()
    program.task.initialize(model, batch, random_key(program.seed, Stream.INITIALIZE))
    return program.initial(program.layout.leaves(model), batch)


def _draw(
    program: Program,
    state: Leaves,
    rows: dict[str, np.ndarray],
    test: Records,
    directory: RunDirectory,
    writer: MetricsWriter,
    step: int,
) -> tuple[Path, ...]:
    """Draw and save the learning curves and the task's pictures."""
    size = min(len(test), 256)
    batch = test.gather(np.arange(size))
    model = program.layout.model(state, training=False)
    figures = {"learning_curves": learning_curves(read_rows(directory.path / "metrics.jsonl"))}
    figures |= program.task.pictures(model, rows, batch, random_key(program.seed, Stream.PICTURES))
    directory.plots.mkdir(exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(directory.plots / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
        writer.picture(step, name, figure)
    return tuple(paths)
