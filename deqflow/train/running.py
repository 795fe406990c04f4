"""Training from a config to a finished run directory, in the order in which it happens."""

import contextlib
import dataclasses
import importlib.util
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from deqflow.config import Config, load, parse
from deqflow.data.pipeline import train_batches
from deqflow.data.source import Records
from deqflow.machine.leaves import Leaves
from deqflow.machine.processes import is_first, largest, place_to_write, wait_for_all
from deqflow.machine.profiling import Trace
from deqflow.machine.refusals import refusals_told, require_device
from deqflow.machine.signals import Stopped, StopRequest
from deqflow.runs.checkpoint import Checkpoints, Damaged, Record
from deqflow.runs.directory import RunDirectory, default_directory
from deqflow.runs.metrics import MetricsWriter, read_rows
from deqflow.runs.progress import Progress
from deqflow.train.assemble import assemble
from deqflow.train.loop import Training, evaluate_split, start
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
    allow_config_change: bool = False,
    overrides: Sequence[str] = (),
    profile: bool = False,
    quiet: bool = False,
    console: Console | None = None,
) -> Result:
    """Train what a config describes, evaluate it on the test split and draw its pictures.

    The same as the command `deqflow train`. In one of several processes (`jax.distributed`) it trains together with the others, which
    call it with the same arguments; process 0 writes the run directory, which all of them must be able to read.

    Args:
      config: a file, the same as nested dictionaries, or a loaded `Config`.
      run_dir: where to write; by default `runs/NAME` after the file's name, numbered if that is taken.
      resume: go on from the newest checkpoint in `run_dir` that is sound, if there is one; a finished run is returned as it is.
      allow_config_change: resume also with another config than the run was started with, which takes its place; a finished run goes on.
      overrides: changes such as `"train.steps=100"`, for a file or dictionaries.
      profile: record a trace of ten steps in the run directory's `profile/`.
      quiet: show no progress.
      console: where progress is shown; standard error by default.

    Returns:
      The result; also after SIGINT or SIGTERM, with a checkpoint of the last step saved.

    Raises:
      UserError: for what the user can mend: a config, data or directory that does not fit, a damaged checkpoint, a loss that
        is not finite, a disk that is full, memory that is short.
    """
    if isinstance(config, (str, Path)):
        config = load(config, overrides)
    elif not isinstance(config, Config):
        config = parse(config, overrides)
    name = Path(config.files[0]).stem if config.files else "run"
    where = run_dir if run_dir is not None else f"runs/{name}"
    require_device()
    with refusals_told(f"cannot write the run directory {where}", "lower data.batch_size, or make the model smaller"):
        directory = RunDirectory(Path(run_dir)) if run_dir is not None else default_directory(name, resume=resume)
        changes = ""
        if resume and not (directory.path.exists() and directory.untouched):
            changes = directory.require_same(config, allow_change=allow_config_change)
            if not changes and (done := directory.result()) is not None:
                pictures = tuple(directory.path / picture for picture in done["pictures"])
                return Result(directory.path, done["step"], done["selected_step"], done["test"], 0.0, pictures)
        elif not resume:
            directory.require_new()
        wait_for_all("the run directory is as they expect")
        return _run(config, directory, changes, profile, quiet, console or Console(stderr=True))


def _run(config: Config, directory: RunDirectory, changes: str, profile: bool, quiet: bool, console: Console) -> Result:
    # All that can be wrong with the installation, the config, the data or the model shows before anything is written.
    if importlib.util.find_spec("matplotlib") is None:  # which is loaded at the end
        raise ModuleNotFoundError("the pictures of a run need matplotlib: pip install 'deqflow[train]'", name="matplotlib")
    assembly = assemble(config)
    model = assembly.make_model()
    program = assembly.program(model, everywhere=True)
    splits = {split: assembly.source.split(split) for split in ("train", "validation", "test")}

    settings, batch_size = program.settings, assembly.source.batch_size
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest(largest if jax.process_count() > 1 else None))
        ours = RunDirectory(stack.enter_context(place_to_write(directory.path)))
        stack.enter_context(ours.held(config))
        checkpoints = stack.enter_context(Checkpoints(directory.checkpoints, settings.keep, clean=is_first()))
        if checkpoints.steps:
            state, record = checkpoints.restore_newest(program.abstract)
        else:
            state, record = start(program, model, splits["train"], batch_size), Record()
        begin = int(state["step"])
        if changes:
            ours.reopen(config)
        writer = stack.enter_context(MetricsWriter(ours.path, begin or None))
        progress = stack.enter_context(Progress(settings.steps, begin, console, quiet or not is_first()))
        batches = stack.enter_context(
            contextlib.closing(
                train_batches(splits["train"], batch_size=batch_size, seed=config.seed, start=begin, **program.placement.share)
            )
        )
        trace = stack.enter_context(contextlib.closing(Trace(ours.path / "profile" if profile else None, begin)))
        training = Training(program, splits["validation"], batch_size, writer, progress, checkpoints, stop, trace)
        for complaint in checkpoints.complaints:
            training.warn(begin, "damaged checkpoint", complaint)
        if changes:
            training.warn(begin, "config changed", f"the run goes on with another config:{changes}")
        if begin:
            progress.message(f"resumed from the checkpoint of step {begin}")
            writer.event(begin, "resumed", f"resumed from the checkpoint of step {begin}")
        state, record = training.fit(state, record, map(program.placement.batch, batches))
        checkpoints.wait()
        step, seconds = int(state["step"]), training.seconds

        selected = record.best_step if settings.select == "best" and record.best_step is not None else step
        try:
            stop.check()
            with progress.pause("testing"):
                if selected != step:
                    try:
                        state, _ = checkpoints.restore(program.abstract, selected)
                    except Damaged as error:
                        training.warn(step, "damaged checkpoint", f"{error}; the parameters of step {step} are tested in place of the best")
                        selected = step
                rows = evaluate_split(program, state, splits["test"], batch_size, stop.check)
                test = assembly.task.summarize(rows)
                writer.write(step, "test", {**test, "selected_step": selected})
                state = program.placement.fetched(state)
                pictures = _draw(program, state, rows, splits["test"], ours, writer, step) if is_first() else ()
            stop.check()
        except Stopped:
            writer.event(step, "interrupted", f"interrupted by {stop.signal.name if stop.signal else 'a signal'} after step {step}")
            return Result(directory.path, step, None, {}, seconds, (), stop.signal)
        ours.finish(
            {
                "step": step,
                "selected_step": selected,
                "test": test,
                "pictures": [str(picture.relative_to(ours.path)) for picture in pictures],
                "seconds": seconds,
            }
        )
    return Result(directory.path, step, selected, test, seconds, pictures)


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
    from deqflow.runs.curves import learning_curves

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
