"""What a checkpoint holds, and how it is known to be what was saved."""

import dataclasses
import functools
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from deqflow.machine.leaves import Leaves, Shapes
from deqflow.registry import UserError


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


Index = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, type and shape of the arrays that are stored end to end, one vector for each type, in this order."""

_SMALL = 1 << 16  # bytes; what Orbax does for an array hardly depends on its size: `python benchmarks/trainer_overhead.py` sees the sum


def index_of(leaves: Leaves) -> Index:
    """The small arrays, which are stored together, unless they are spread over devices."""
    small = (name for name, leaf in sorted(leaves.items()) if leaf.nbytes <= _SMALL and leaf.is_fully_replicated)
    return tuple((name, str(leaves[name].dtype), leaves[name].shape) for name in small)


@functools.partial(jax.jit, static_argnames="index")
def packed(leaves: Leaves, index: Index) -> Leaves:
    """What is stored of the state, in memory of its own: Orbax would read the very buffers that the next step reuses."""
    small = {name for name, _, _ in index}
    large = {name: jnp.copy(leaf) for name, leaf in leaves.items() if name not in small}
    return large | {vector: jnp.concatenate([leaves[name].ravel() for name in shapes]) for vector, shapes in _vectors(index).items()}


def storage(contents: "Contents", places: Mapping[str, Sharding]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, type and place of what is stored: the vectors whole on every device on which their parts will be."""
    stored = {name: jax.ShapeDtypeStruct(*entry, sharding=places[name]) for name, entry in contents.shapes.items()}
    for vector, shapes in _vectors(contents.index).items():
        first, *_ = parts = [stored.pop(name) for name in shapes]
        whole = NamedSharding(first.sharding.mesh, PartitionSpec()) if isinstance(first.sharding, NamedSharding) else first.sharding
        stored[vector] = jax.ShapeDtypeStruct((sum(part.size for part in parts),), first.dtype, sharding=whole)
    return stored


def unpacked(stored: Leaves, index: Index, places: Mapping[str, Sharding]) -> Leaves:
    """The inverse of `packed`, every array in its place."""
    leaves = dict(stored)
    for vector, shapes in _vectors(index).items():
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
        parts = np.split(np.asarray(leaves.pop(vector).addressable_data(0)), ends[:-1])
        for (name, shape), part in zip(shapes.items(), parts, strict=True):
            leaves[name] = jax.make_array_from_callback(shape, places[name], part.reshape(shape).__getitem__)
    return leaves


def _vectors(index: Index) -> dict[str, dict[str, tuple[int, ...]]]:
    """The names of the vectors, and the arrays in each with their shapes, in order."""
    vectors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, dtype, shape in index:
        vectors.setdefault(f"small/{dtype}", {})[name] = shape
    return vectors


def checksum_of(stored: Leaves, index: Index, record: Record) -> int | None:
    """Of all bits that a checkpoint brings back; `None` where no process holds all of them."""
    checksum = zlib.crc32(json.dumps([dataclasses.asdict(record), index], sort_keys=True).encode())
    for name, leaf in sorted(stored.items()):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
        whole = leaf.addressable_data(0) if leaf.is_fully_replicated else leaf
        checksum = zlib.crc32(np.asarray(whole).tobytes(), zlib.crc32(name.encode(), checksum))
    return checksum


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the metadata of a checkpoint say.

    Attributes:
      record: what it remembers besides arrays.
      checksum: of all that it holds, or `None` where no process held all of it.
      index: which arrays are stored together.
      shapes: shape and type of every array.
    """

    record: Record
    checksum: int | None
    index: Index
    shapes: dict[str, tuple[tuple[int, ...], Any]]

    @classmethod
    def of(cls, metadata: Any) -> "Contents":
        """Read them, from what Orbax gives.

        Raises:
          ValueError: if they are not all there.
        """
        values = dict(metadata.custom_metadata or {})
        if not {"checksum", "index"} <= values.keys():
            raise ValueError("what it remembers besides arrays is missing")
        if metadata.metadata is None:
            raise ValueError("the list of its arrays is not readable")
        checksum = values.pop("checksum")
        index = tuple((name, dtype, tuple(shape)) for name, dtype, shape in values.pop("index"))
        vectors = _vectors(index)
        shapes = {name: (tuple(leaf.shape), jnp.dtype(leaf.dtype)) for name, leaf in metadata.metadata.items() if name not in vectors}
        shapes |= {name: (shape, jnp.dtype(dtype)) for name, dtype, shape in index}
        return cls(Record(**values), checksum, index, shapes)


def require_same(shapes: dict[str, tuple[tuple[int, ...], Any]], abstract: Shapes, where: Path) -> None:
    """Raise `Damaged`, naming the first array that differs, unless these are the shapes and types of `abstract`."""
    expected = {name: (tuple(leaf.shape), jnp.dtype(leaf.dtype)) for name, leaf in abstract.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        want, have = expected.get(name), shapes.get(name)
        if want != have:
            there, here = ("nothing" if entry is None else f"{entry[1]}{list(entry[0])}" for entry in (have, want))
            raise Damaged(f"the checkpoint {where} belongs to another model: {name} is {there} there and {here} here")
