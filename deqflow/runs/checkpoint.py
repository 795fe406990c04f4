"""Checkpoints on disk. Everything that deqflow knows of Orbax is in this file, in `contents.py` and in `orbax_reports.py`."""

import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as orbax

from deqflow.machine.leaves import Leaves, Shapes
from deqflow.machine.processes import is_first
from deqflow.machine.refusals import is_out_of_memory
from deqflow.registry import UserError
from deqflow.runs.contents import Contents, Damaged, Record, checksum_of, index_of, packed, require_same, storage, unpacked
from deqflow.runs.orbax_reports import Reports

T = TypeVar("T")

_DROPPED = "dropped-"  # begins the name of what is being removed


class Checkpoints:
    """The checkpoints of one run, `directory/STEP`, written in the background and complete or absent.

    The newest `keep` stay, the best one, and the sound one (see `Record`); what is not kept goes when the next one is due. Each holds a
    checksum of what was saved, unless that is spread over processes, so that a single flipped bit in what comes back is told. Use as a
    context manager: leaving it waits for the last one to be on disk.

    Args:
      directory: created if it is missing.
      keep: how many of the newest stay.
      clean: remove what a killed run left half-written or half-removed, and set aside what is damaged; not for one who only reads, as
        the run may be under way.

    Attributes:
      steps: those on disk or on their way there, ascending.
      complaints: what is wrong with checkpoints that were set aside.

    Raises:
      OSError: if the directory cannot be read or made.
    """

    def __init__(self, directory: Path, keep: int = 2, *, clean: bool = False) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports each file
        self.directory = directory.resolve()
        self.complaints: list[str] = []
        self._keep, self._clean = keep, clean
        self._named: set[int | None] = set()
        self._reports = Reports()
        self._writing: tuple[int, Any] | None = None  # the step on its way to the disk, and Orbax's promise
        self._context = _context()
        self.directory.mkdir(parents=True, exist_ok=True)
        if clean:
            self._remove_leftovers()
        self.steps = sorted(int(folder.name) for folder in self.directory.iterdir() if folder.name.isdecimal())

    def __enter__(self) -> "Checkpoints":
        self._reports.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self.wait()
            elif self._writing is not None and self._attempt(self._writing[1].result)[1] is not None:
                self._remove_leftovers()
        finally:
            self._reports.__exit__(kind, error, trace)

    def save(self, leaves: Leaves, record: Record) -> None:
        """Start to write the state; a step that is on disk already is left as it is.

        Raises:
          UserError: if it, or the one before, cannot be written.
        """
        self.wait()
        step = int(leaves["step"])
        if step in self.steps:
            return
        self._named = {record.best_step, record.sound_step}
        self._reports.clear()
        index = index_of(leaves)
        stored = packed(leaves, index)
        metadata = dataclasses.asdict(record) | {"index": index, "checksum": checksum_of(stored, index, record)}
        promise, failure = self._attempt(lambda: orbax.save_async(str(self._path(step)), stored, custom_metadata=metadata))
        if failure is not None:
            raise self._unsaved(step, failure)
        self._writing = step, promise
        self.steps.append(step)

    def wait(self) -> None:
        """Return once what was saved is on disk.

        Raises:
          UserError: if it could not be written.
        """
        if self._writing is None:
            return
        (step, promise), self._writing = self._writing, None
        failure = self._attempt(promise.result)[1]
        # Orbax does not raise every failure, but what is there under its own name is complete.
        if failure is not None or not self._path(step).is_dir():
            self.steps.remove(step)
            raise self._unsaved(step, failure or self._reports.reason())
        for old in self.steps[: -self._keep]:
            if old not in self._named:
                self._drop(old)

    def record(self) -> Record:
        """What the newest checkpoint remembers besides arrays.

        Raises:
          UserError: if there is none, or it cannot be read.
        """
        step = self._existing(None)
        return self._read(step, lambda: Contents.of(orbax.metadata(str(self._path(step))))).record

    def restore(self, abstract: Shapes | None = None, step: int | None = None) -> tuple[Leaves, Record]:
        """Read the state of `step` (by default of the newest), of the shapes and types, and onto the devices, that `abstract` names.

        How many devices there were when it was saved makes no difference.

        Raises:
          Damaged: if there is no such checkpoint, it is not what was saved, or it belongs to another model.
          UserError: if there is none at all, or it may not be read.
        """
        self.wait()
        step = self._existing(step)
        contents = self._read(step, lambda: Contents.of(orbax.metadata(str(self._path(step)))))
        if abstract is not None:
            require_same(contents.shapes, abstract, self._path(step))
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = {name: (abstract[name].sharding if abstract else None) or here for name in contents.shapes}
        target = storage(contents, places)
        stored: Any = self._read(step, lambda: jax.block_until_ready(orbax.load(str(self._path(step)), target)))
        found = checksum_of(stored, contents.index, contents.record)
        if None not in (found, contents.checksum) and found != contents.checksum:
            raise self._damaged(step, "its checksum is not that of what was saved")
        return _copy(unpacked(stored, contents.index, places)), contents.record

    def restore_newest(self, abstract: Shapes) -> tuple[Leaves, Record]:
        """Read the newest checkpoint that is sound.

        Returns:
          The state and the record. What is wrong with newer ones is added to `complaints`; they are set aside as `damaged-STEP`, and
          training makes them anew.

        Raises:
          Damaged: if none is sound; then all of them stay.
        """
        complaints: list[Damaged] = []
        for step in reversed(self.steps):
            try:
                leaves, record = self.restore(abstract, step)
            except Damaged as error:  # also one that seems to belong to another model, as long as an older one does not
                complaints.append(error)
                continue
            for newer in [newer for newer in self.steps if newer > step]:
                self._set_aside(newer)
            self.complaints.extend(map(str, complaints))
            return leaves, record
        raise complaints[0]

    def _path(self, step: int) -> Path:
        return self.directory / str(step)

    def _set_aside(self, step: int) -> None:
        self.steps.remove(step)
        if self._clean:
            aside = self.directory / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self._path(step), aside)

    def _drop(self, step: int) -> None:
        """Remove a checkpoint, in such a way that it is never there under its own name and yet incomplete."""
        self.steps.remove(step)
        if is_first():
            with contextlib.suppress(OSError):  # then the next one cannot be saved either, and that is told
                os.replace(self._path(step), self.directory / f"{_DROPPED}{step}")
            shutil.rmtree(self.directory / f"{_DROPPED}{step}", ignore_errors=True)

    def _existing(self, step: int | None) -> int:
        if not self.steps:
            raise UserError(f"there is no checkpoint in {self.directory}; the run has not reached its first one")
        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            raise Damaged(
                f"there is no checkpoint of step {step} in {self.directory}; there are {', '.join(map(str, self.steps))} (--step)"
            )
        return step

    def _attempt(self, act: Callable[[], T]) -> tuple[T | None, str | None]:
        """What `act` gives, or why it failed: Orbax documents no exception types, and any failure on disk means the same to the user."""
        try:
            with self._context:
                return act(), None
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = self._reports.reason(error)
        # Here `error`, which holds Orbax's unfinished work, is gone.
        self._reports.collect()
        return None, reason

    def _read(self, step: int, act: Callable[[], T]) -> T:
        self._reports.clear()
        value, reason = self._attempt(act)
        if reason is None:
            return cast(T, value)
        path = self._path(step)
        if reason == os.strerror(errno.EACCES):
            raise UserError(f"the checkpoint {path} cannot be read: {reason}")
        raise self._damaged(step, reason)

    def _damaged(self, step: int, reason: str) -> Damaged:
        others = [str(other) for other in self.steps if other != step]
        remedy = f"use that of step {others[-1]}" if others else "start the run anew in another folder"
        return Damaged(f"the checkpoint {self._path(step)} is damaged ({reason}); {remedy}")

    def _unsaved(self, step: int, reason: str) -> UserError:
        self._remove_leftovers()
        return UserError(
            f"the checkpoint of step {step} cannot be saved in {self.directory} ({reason}); see to free space and permissions there, "
            "then go on by --resume"
        )

    def _remove_leftovers(self) -> None:
        if is_first():
            for leftover in itertools.chain(self.directory.glob("*.orbax-checkpoint-tmp*"), self.directory.glob(f"{_DROPPED}*")):
                shutil.rmtree(leftover, ignore_errors=True)


def _context() -> orbax.Context:
    options = orbax.options
    saving = options.ArrayOptions.Saving(enable_write_sharding_file=False)  # who restores says where
    # Orbax makes an object of every kind that it knows, twice for every save.
    kinds = orbax.handlers.local_registry(include_global_registry=False).add(orbax.handlers.PyTreeHandler)
    return orbax.Context(
        # Of folders made in the background Orbax would wait for ever where they cannot be made.
        async_options=options.AsyncOptions(create_directories_asynchronously=False),
        array_options=options.ArrayOptions(saving=saving),
        checkpointables_options=options.CheckpointablesOptions(registry=kinds),
    )


_copy = jax.jit(lambda leaves: jax.tree.map(jnp.copy, leaves))
