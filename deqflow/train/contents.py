"""What a checkpoint holds, and how it is known to be what was saved."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from deqflow.registry import UserError
from deqflow.train.state import Leaves, Shapes


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run must remember besides arrays.

    Attributes:
      best_step: the step of the best validation metric so far, or `None` before the first evaluation.
      best_value: that metric.
      stale: evaluations in a row that did not better it.
      sound_step: the last step that was saved on schedule while updates were made, to which a run that diverges goes back; `None` before.
    """

    best_step: int | None = None
    best_value: float | None = None
    stale: int = 0
    sound_step: int | None = None


class Damaged(UserError):
    """A checkpoint that is gone, cannot be read, is not what was saved by its checksum, or is not of this model."""


def checksum_of(leaves: Leaves, record: Record) -> int | None:
    """Of all bits that a checkpoint brings back; `None` where no process holds all of them."""
    checksum = zlib.crc32(json.dumps(dataclasses.asdict(record), sort_keys=True).encode())
    for name, leaf in sorted(leaves.items()):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
        whole = leaf.addressable_data(0) if leaf.is_fully_replicated else leaf
        checksum = zlib.crc32(np.asarray(whole).tobytes(), zlib.crc32(name.encode(), checksum))
    return checksum


def remembered(metadata: Any) -> tuple[Record, int | None]:
    """What a checkpoint remembers besides arrays, and its checksum."""
    if not metadata.custom_metadata:
        raise ValueError("what it remembers besides arrays is missing")
    values = dict(metadata.custom_metadata)
    return Record(**{name: value for name, value in values.items() if name != "checksum"}), values["checksum"]


def shapes_of(metadata: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and type of every array in a checkpoint."""
    if metadata.metadata is None:
        raise ValueError("the list of its arrays is not readable")
    return {name: (tuple(leaf.shape), jnp.dtype(leaf.dtype)) for name, leaf in metadata.metadata.items()}


def require_same(shapes: dict[str, tuple[tuple[int, ...], Any]], abstract: Shapes, where: Path) -> None:
    """Raise `Damaged`, naming the first array that differs, unless these are the shapes and types of `abstract`."""
    expected = {name: (tuple(leaf.shape), jnp.dtype(leaf.dtype)) for name, leaf in abstract.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        want, have = expected.get(name), shapes.get(name)
        if want != have:
            there, here = ("nothing" if entry is None else f"{entry[1]}{list(entry[0])}" for entry in (have, want))
            raise Damaged(f"the checkpoint {where} belongs to another model: {name} is {there} there and {here} here")
