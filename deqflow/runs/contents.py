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
from jax.sharding import Sharding
from jaxtyping import Array

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
"""Name, type and shape of the arrays that are stored end to end, in this order."""

SMALL = "small"  # the name of what they are stored as, a vector of bytes
_LIMIT = 1 << 16  # bytes; what Orbax does for an array hardly depends on its size: `python benchmarks/trainer_overhead.py` sees the sum


def index_of(leaves: Leaves) -> Index:
    """The small arrays, which are stored together, unless they are spread over devices."""
    small = (name for name, leaf in sorted(leaves.items()) if leaf.nbytes <= _LIMIT and leaf.is_fully_replicated)
    return tuple((name, _name(leaves[name].dtype), leaves[name].shape) for name in small)


_name = functools.cache(str)  # of a type; NumPy takes 7 microseconds


def packed(leaves: Leaves, index: Index) -> dict[str, Any]:
    """What is stored of the state, in memory of its own: Orbax would read the very buffers that the next step reuses."""
    stored: dict[str, Any] = dict(_packed(leaves, index))
    stored[SMALL] = _whole(stored[SMALL])
    return stored


@functools.partial(jax.jit, static_argnames="index")
def _packed(leaves: Leaves, index: Index) -> Leaves:
    small = {name: _bytes(leaves[name]) for name, _, _ in index}
    large = {name: jnp.copy(leaf) for name, leaf in leaves.items() if name not in small}
    return large | {SMALL: jnp.concatenate([*small.values(), jnp.zeros(0, jnp.uint8)])}


def _bytes(leaf: Array) -> Array:
    numbers = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    return jax.lax.bitcast_convert_type(numbers, jnp.uint8).ravel()


def storage(contents: "Contents", places: Mapping[str, Sharding]) -> dict[str, Any]:
    """Shape, type and place of what is stored."""
    small = {name for name, _, _ in contents.index}
    large = {name: entry for name, entry in contents.shapes.items() if name not in small}
    size = sum(math.prod(shape) * jnp.dtype(dtype).itemsize for _, dtype, shape in contents.index)
    stored = {name: jax.ShapeDtypeStruct(*entry, sharding=places[name]) for name, entry in large.items()}
    return stored | {SMALL: np.empty(size, np.uint8)}


def unpacked(stored: Mapping[str, Any], index: Index, places: Mapping[str, Sharding]) -> Leaves:
    """The inverse of `packed`, every array in its place."""
    leaves = {name: leaf for name, leaf in stored.items() if name != SMALL}
    begin = 0
    for name, dtype, shape in index:
        end = begin + math.prod(shape) * jnp.dtype(dtype).itemsize
        whole = stored[SMALL][begin:end].view(dtype).reshape(shape)
        leaves[name] = jax.make_array_from_callback(shape, places[name], whole.__getitem__)
        begin = end
    return leaves


def checksum_of(stored: Mapping[str, Any], index: Index, record: Record) -> int | None:
    """Of all bits that a checkpoint brings back; `None` where no process holds all of them."""
    checksum = zlib.crc32(json.dumps([dataclasses.asdict(record), index], sort_keys=True).encode())
    for name, leaf in sorted(stored.items()):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
        checksum = zlib.crc32(_whole(leaf).tobytes(), zlib.crc32(name.encode(), checksum))
    return checksum


def _whole(leaf: Any) -> np.ndarray:
    return np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) and leaf.is_fully_replicated else leaf)


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
        shapes = {name: (tuple(leaf.shape), jnp.dtype(leaf.dtype)) for name, leaf in metadata.metadata.items() if name != SMALL}
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
