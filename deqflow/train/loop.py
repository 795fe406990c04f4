"""The training loop, and the passes over a split around it."""

import collections
import contextlib
import dataclasses
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
from deqflow.registry import UserError
from deqflow.train.checkpoint import Checkpoints, Record
from deqflow.train.metrics import MetricsWriter
from deqflow.train.progress import Progress
from deqflow.train.signals import StopRequest
from deqflow.train.state import Leaves
from deqflow.train.step import Program, Stream, random_key


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
        self._first = True
        self._under_way: collections.deque[tuple[int, jax.Array]] = collections.deque()  # steps that the device may not have finished

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
            if step % settings.log_every == 0:
                self.stop.agree()
            self._under_way.append((step, means["loss"]))
            self._log()  # of the step before: by now its numbers are there, and nothing waits for them
            last = step == settings.steps
            if step % settings.log_every == 0 or last:
                self._pending = (step, means)
            better = False
            if step % settings.eval_every == 0 or last:
                self._log()
                self._report(wait=True)
                with self.progress.pause("validating"):
                    record, better = self._validate(state, record, step)
            ends = last or self.stop.signal is not None or self._out_of_patience(record)
            if better or ends or step % settings.checkpoint_every == 0:
                self._log()
                self._report(wait=True)
                self.writer.sync()
                with self.progress.pause("saving"):
                    self.checkpoints.save(state, record)
            self._report(wait=self._first)  # speed is counted from the end of the first step, which compiles
            self._first = False
        self.seconds = time.perf_counter() - self._began
        return state, record

    def _out_of_patience(self, record: Record) -> bool:
        patience = self.program.settings.patience
        return patience is not None and record.stale >= patience

    def _validate(self, state: Leaves, record: Record, step: int) -> tuple[Record, bool]:
        task = self.program.task
        numbers = task.summarize(evaluate_split(self.program, state, self.validation, self.batch_size))
        numbers |= task.inspect(self.program.layout.model(state, training=False))
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

    def _report(self, wait: bool = False) -> None:
        """Tell the progress of the newest step that the device has finished; with `wait`, of the newest one there is."""
        done: int | None = None
        while self._under_way and (wait or self._under_way[0][1].is_ready()):  # pyright: ignore[reportAttributeAccessIssue]  # of every concrete array
            done, loss = self._under_way.popleft()
            loss.block_until_ready()
        if done is not None:
            self.progress.update(done)

    def _log(self) -> None:
        """Write the row that is waiting, if any."""
        if self._pending is None:
            return
        step, means = self._pending
        self._pending = None
        numbers = {name: float(value) for name, value in jax.device_get(means).items()}
        while self._under_way and self._under_way[0][0] <= step:
            self._under_way.popleft()
        self.progress.update(step, numbers)
        self.writer.write(step, "train", numbers)
        self.writer.timing(step, time.perf_counter() - self._began, self.progress.steps_per_second)
        if not math.isfinite(numbers["loss"]):
            saved = self.checkpoints.steps
            remedy = "lower the learning rate, clip gradients (optim.clip) or look at the data"
            where = f"; the last checkpoint is of step {saved[-1]}" if saved else ""
            raise UserError(f"the training loss became {numbers['loss']} within the last steps before step {step}: {remedy}{where}")
        # A failed solve has no gradient, so that the loss stays finite while less and less is learnt.
        if (failures := numbers.get("solver_failures", 0.0)) > 0.5:
            raise UserError(
                f"{failures:.0%} of the solves failed within the last steps before step {step}: {Status.DIVERGED.message} "
                f"({Status.DIVERGED.name}); {Status.DIVERGED.remedy}, for instance by a smaller gain of the cell, a lower learning rate "
                "or a penalty on its Jacobian (model.training.jacobian)"
            )


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
    return program.initial(program.layout.leaves(model), batch)
