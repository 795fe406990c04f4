"""The training loop, and the passes over a split around it."""

import collections
import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deqflow.data.pipeline import eval_batches, train_batches
from deqflow.data.source import Records
from deqflow.implicit.status import Status
from deqflow.machine.flops import utilisation
from deqflow.machine.leaves import Leaves, section
from deqflow.machine.profiling import Trace, peak_bytes
from deqflow.machine.signals import StopRequest
from deqflow.registry import UserError
from deqflow.runs.checkpoint import Checkpoints, Record
from deqflow.runs.metrics import MetricsWriter
from deqflow.runs.progress import Progress
from deqflow.train import guard
from deqflow.train.step import Program, Stream, random_key


@dataclasses.dataclass(frozen=True)
class Divergence:
    """That so many updates in a row were refused that the run cannot go on as it is.

    Attributes:
      step: of the row that tells so.
      in_a_row: the refusals.
      retries: how often the run has gone back before.
      refused: the numbers of the last step that was refused.
    """

    step: int
    in_a_row: int
    retries: int
    refused: dict[str, float]


@dataclasses.dataclass
class Training:
    """The loop, with what it reports to.

    The order of a step: take batch `k`; start update `k`, whose numbers nobody waits for; write the row of the step before, if it is due;
    where they are due, write the row of this step, validate, save. So the rows of a step are on disk before its checkpoint, and a run
    resumed from there has them all. What happens depends on rows alone, never on when they were read: a divergence that the row of step
    `k` tells sends the run back as of step `k`, whatever was started since.

    Attributes:
      seconds: how long `fit` took.
    """

    program: Program
    validation: Records
    batch_size: int
    writer: MetricsWriter
    progress: Progress
    checkpoints: Checkpoints
    stop: StopRequest
    trace: Trace = dataclasses.field(default_factory=Trace)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._began = time.perf_counter()
        self._pending: tuple[int, Leaves] | None = None
        self._batch: Mapping[str, np.ndarray] = {}
        self._first = True
        self._under_way: collections.deque[tuple[int, jax.Array]] = collections.deque()  # steps that the device may not have finished

    def fit(self, state: Leaves, record: Record, batches: Iterator[Mapping[str, np.ndarray]]) -> tuple[Leaves, Record]:
        """Train until the last step, the end of patience or a request to stop; the last step is saved.

        Raises:
          UserError: if the run has diverged and may not go back again.
        """
        settings = self.program.settings
        begin = step = int(state["step"])
        while step < settings.steps and not self._out_of_patience(record) and self.stop.signal is None:
            self.trace.before(step, state)
            self._batch = next(batches)
            state, told = self.program.step(state, self._batch)
            step += 1
            if step % settings.log_every == 0:
                self.stop.agree()
            self._under_way.append((step, told["loss"]))
            if (divergence := self._log()) is not None:  # the row of the step before: its numbers are there by now
                state, step = self._back(state, record, divergence), divergence.step
                batches = itertools.chain([self._batch], batches)
                continue
            last = step == settings.steps
            if step % settings.log_every == 0 or last:
                self._pending = (step, told)
            validate = step % settings.eval_every == 0 or last
            save = step % settings.checkpoint_every == 0
            if validate or save or self.stop.signal is not None:
                if (divergence := self._log()) is not None:
                    state = self._back(state, record, divergence)
                    continue
                self._report(wait=True)
            if validate:
                with self.progress.pause("validating"):
                    record, better = self._validate(state, record, step)
                save = save or better
            if save:
                record = self._save(state, record, scheduled=True)
            self._report(wait=self._first)  # speed is counted from the end of the first step, which compiles
            self._first = False
        if step > begin:
            if (divergence := self._log()) is not None:
                state = self._back(state, record, divergence)
            record = self._save(state, record, scheduled=False)
        self.seconds = time.perf_counter() - self._began
        return state, record

    def warn(self, step: int, kind: str, text: str) -> None:
        """Show and record what happened."""
        self.progress.warning(text)
        self.writer.event(step, kind, text)

    def _save(self, state: Leaves, record: Record, *, scheduled: bool) -> Record:
        """Save the state; on schedule, and with updates being made, it is one to go back to."""
        if scheduled and int(state["guard/in_a_row"]) == 0:
            record = dataclasses.replace(record, sound_step=int(state["step"]))
        self.writer.sync()
        with self.progress.pause("saving"):
            self.checkpoints.save(state, record)
        return record

    def _back(self, state: Leaves, record: Record, divergence: Divergence) -> Leaves:
        """The state of the last sound checkpoint, at the step of the divergence, so that other batches follow."""
        what, remedy = guard.reason(self.program.settings.guard, divergence.refused)
        solves = guard.solves_in_words(self._statuses(state))
        text = f"{what} and {divergence.in_a_row} updates in a row were refused before step {divergence.step}"
        if record.sound_step is None or divergence.retries >= self.program.settings.guard.retries:
            tried = f"; going back {divergence.retries} times did not help" if divergence.retries else ""
            saved = self.checkpoints.steps
            where = f"; the last checkpoint is of step {saved[-1]}" if saved else ""
            text = f"training diverged: {text}{tried}: {'; '.join(filter(None, (solves, remedy)))}{where}"
            self.writer.event(divergence.step, "diverged", text)
            raise UserError(text)
        sound, _ = self.checkpoints.restore(self.program.abstract, record.sound_step)
        text = f"{text}; the run goes back to the parameters of step {record.sound_step} and on to other batches"
        self.warn(divergence.step, "went back", "; ".join(filter(None, (text, solves))))
        self._under_way.clear()
        return self.program.retried(sound, divergence.step, divergence.retries + 1)

    def _statuses(self, state: Leaves) -> dict[Status, float]:
        """The shares of the ways in which the solves of the last batch end, where the task tells them."""
        current = {name: state[name.replace("average/", "params/", 1)] for name in state}  # the average has not diverged
        ends = np.asarray(self.program.evaluate(current, self._batch, 0).get("status", ()))
        return {status: float(np.mean(ends == status)) for status in Status if ends.size}

    def _out_of_patience(self, record: Record) -> bool:
        patience = self.program.settings.patience
        return patience is not None and record.stale >= patience

    def _validate(self, state: Leaves, record: Record, step: int) -> tuple[Record, bool]:
        task = self.program.task
        numbers = task.summarize(evaluate_split(self.program, state, self.validation, self.batch_size))
        numbers |= self.program.inspect(state, self.validation)
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
        stale = 0 if gain > 0 else record.stale + 1
        return dataclasses.replace(record, best_step=step, best_value=value, stale=stale), True

    def _report(self, wait: bool = False) -> None:
        """Tell the progress of the newest step that the device has finished; with `wait`, of the newest one there is."""
        done: int | None = None
        while self._under_way and (wait or self._under_way[0][1].is_ready()):  # pyright: ignore[reportAttributeAccessIssue]  # of every concrete array
            done, loss = self._under_way.popleft()
            loss.block_until_ready()
        if done is not None:
            self.progress.update(done)

    def _log(self) -> Divergence | None:
        """Write the row that is waiting, if any; return the divergence that it tells."""
        if self._pending is None:
            return None
        step, told = self._pending
        self._pending = None
        values = {name: value.item() for name, value in jax.device_get(told).items()}
        refused = {name.partition("/")[2]: value for name, value in section(values, "refused").items()}
        numbers = {name: value for name, value in values.items() if "/" not in name}
        while self._under_way and self._under_way[0][0] <= step:
            self._under_way.popleft()
        self.progress.update(step, numbers)
        self.writer.write(step, "train", numbers)
        speed = self.progress.steps_per_second
        measured = {"steps_per_second": speed, "examples_per_second": speed and speed * self.batch_size, "peak_bytes": peak_bytes()}
        measured |= utilisation(self.program.work, speed, self.program.placement.devices)
        self.writer.timing(step, time.perf_counter() - self._began, measured)
        if values["refused"]:
            what, _ = guard.reason(self.program.settings.guard, refused)
            self.warn(step, "refused", f"{values['refused']} updates refused before step {step}; of the last, {what}")
        in_a_row = int(values["guard/in_a_row"])
        return Divergence(step, in_a_row, int(values["guard/retries"]), refused) if in_a_row >= self.program.patience else None


def evaluate_split(
    program: Program, state: Leaves, records: Records, batch_size: int, check: Callable[[], None] = lambda: None
) -> dict[str, np.ndarray]:
    """The values of the task's `evaluate` for every example of a split, with the labels as `y` where there are labels.

    Before every batch `check` is called, which may raise to end it.
    """
    parts: list[dict[str, np.ndarray]] = []
    with contextlib.closing(eval_batches(records, batch_size=batch_size, **program.placement.share)) as batches:
        for index, batch in enumerate(batches):
            check()
            rows = jax.device_get(program.evaluate(state, program.placement.batch(batch), index))
            valid = rows.pop("mask") > 0
            parts.append({name: np.asarray(column)[valid] for name, column in rows.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def start(program: Program, model: Any, train: Records, batch_size: int) -> Leaves:
    """The state at step 0, after data-dependent initialisation with the first training batch."""
    # Every process computes it alike from the whole batch.
    with contextlib.closing(train_batches(train, batch_size=batch_size, seed=program.seed)) as batches:
        batch = jax.tree.map(jnp.asarray, next(batches))
    model.train()
    program.task.initialize(model, batch, random_key(program.seed, Stream.INITIALIZE))
    return program.initial(program.layout.leaves(model))
