"""Checkpoints on disk. Everything that deqflow knows of Orbax is in this file."""

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as orbax

from deqflow.registry import UserError
from deqflow.train.state import Leaves, Shapes


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run must remember besides arrays.

    Attributes:
      best_step: the step of the best validation metric so far, or `None` before the first evaluation.
      best_value: that metric.
      stale: evaluations in a row that did not better it.
    """

    best_step: int | None = None
    best_value: float | None = None
    stale: int = 0


@contextlib.contextmanager
def _stragglers_ignored() -> Iterator[None]:
    """Ignore the reads that end after one of them has failed.

    Orbax closes its event loop at the first failure; each read that is still under way then reports a closed loop from its thread,
    which Python would print, though the failure itself is raised.
    """
    before = sys.unraisablehook
    sys.unraisablehook = lambda report: None if isinstance(report.exc_value, RuntimeError) else before(report)
    try:
        yield
    except Exception:
        time.sleep(0.5)
        raise
    finally:
        sys.unraisablehook = before


class Checkpoints:
    """The checkpoints of one run, `directory/STEP`, written in the background and complete or absent.

    The newest `keep` stay, and the best one. Use as a context manager: leaving it waits for the last one to be on disk.

    Args:
      directory: created if it is missing.
      keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports each file; errors are raised anyway
        self.directory = directory.resolve()
        self._preserve = _NewestAndBest(keep)
        every = orbax.training.save_decision_policies.FixedIntervalPolicy(1)
        self._orbax = orbax.training.Checkpointer(
            str(self.directory),
            save_decision_policy=every,  # pyright: ignore[reportArgumentType]  # Orbax annotates it more narrowly than it is
            preservation_policy=self._preserve,
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._orbax.close()

    @property
    def steps(self) -> list[int]:
        """The steps that are on disk, ascending."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def save(self, leaves: Leaves, record: Record) -> None:
        """Start to write the state; a step that is on disk already is left as it is."""
        step = int(leaves["step"])
        if step in self.steps:
            return
        self._preserve.best = record.best_step
        # On the CPU Orbax would read the very buffers that the next step reuses.
        self._orbax.save_async(step, _copy(leaves), custom_metadata=dataclasses.asdict(record))

    @_stragglers_ignored()
    def record(self) -> Record:
        """What the newest checkpoint remembers besides arrays.

        Raises:
          UserError: if there is none, or it cannot be read.
        """
        step = self._existing(None)
        try:
            return _record(self._orbax.metadata(step))
        except Exception as error:  # Orbax documents no exception types; any failure to read means the same to the user
            raise self._unreadable(step, error) from error

    @_stragglers_ignored()
    def restore(self, abstract: Shapes | None = None, step: int | None = None) -> tuple[Leaves, Record]:
        """Read the state of `step` (by default of the newest), of the shapes and types that `abstract` names.

        Raises:
          UserError: if there is no such checkpoint, it cannot be read, or it belongs to another model.
        """
        step = self._existing(step)
        try:
            metadata = self._orbax.metadata(step)
            shapes = {name: (tuple(leaf.shape), jnp.dtype(leaf.dtype)) for name, leaf in metadata.metadata.items()}
            record = _record(metadata)
        except Exception as error:
            raise self._unreadable(step, error) from error
        if abstract is not None:
            _require_same(shapes, abstract, self.directory / str(step))
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=here) for name, (shape, dtype) in shapes.items()}
        try:
            leaves: Any = self._orbax.load(step, target)
            jax.block_until_ready(leaves)
        except Exception as error:
            raise self._unreadable(step, error) from error
        return _copy(leaves), record

    def _existing(self, step: int | None) -> int:
        if not self.steps:
            raise UserError(f"there is no checkpoint in {self.directory}; the run has not reached its first one")
        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            raise UserError(f"there is no checkpoint of step {step} in {self.directory}; there are {', '.join(map(str, self.steps))}")
        return step

    def _unreadable(self, step: int, error: Exception) -> UserError:
        others = [str(other) for other in self.steps if other != step]
        remedy = f"delete that folder to go on from step {others[-1]}" if others else "start the run anew in another folder"
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        return UserError(f"the checkpoint {self.directory / str(step)} cannot be read and is probably damaged; {remedy} ({reason[:200]})")


class _NewestAndBest(orbax.training.preservation_policies.PreservationPolicy):
    """Keeps the newest few checkpoints and the best."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        first = len(checkpoints) - self.keep
        return [index >= first or checkpoint.step == self.best for index, checkpoint in enumerate(checkpoints)]


_copy = jax.jit(lambda leaves: jax.tree.map(jnp.copy, leaves))


def _record(metadata: Any) -> Record:
    return Record(**(metadata.custom_metadata or {}))


def _require_same(shapes: dict[str, tuple[tuple[int, ...], Any]], abstract: Shapes, where: Path) -> None:
    expected = {name: (tuple(leaf.shape), jnp.dtype(leaf.dtype)) for name, leaf in abstract.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        want, have = expected.get(name), shapes.get(name)
        if want != have:
            there, here = ("nothing" if entry is None else f"{entry[1]}{list(entry[0])}" for entry in (have, want))
            raise UserError(f"the checkpoint {where} belongs to another model: {name} is {there} there and {here} here")
