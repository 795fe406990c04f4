"""The interface between a data set and the rest: what is known of it, and its examples by number."""

import abc
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Integer

from deqflow.data.spec import DataSpec
from deqflow.registry import UserError, suggest

Batch = dict[str, np.ndarray]
"""`x` of shape `(batch, *input_shape)`; `y`, int32 labels of shape `(batch, *label_shape)`, where there are labels; in evaluation `mask`,
float32 of shape `(batch,)`: 1 for an example, 0 for the padding that fills the last batch."""

SPLITS = ("train", "validation", "test")


class Records(abc.ABC):
    """The examples of one split, read by number.

    Attributes:
      access: what reading costs. `"memory"`: an array lookup. `"mapped"`: an array lookup that may wait for a disk.
        `"records"`: every example is read and decoded on its own.
    """

    access: Literal["memory", "mapped", "records"]

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples, at least one."""

    @abc.abstractmethod
    def gather(self, indices: Integer[np.ndarray, " batch"]) -> Batch:
        """The examples with these numbers (`0 .. len - 1`), in this order, stacked; safe to call from several threads."""


class Source(abc.ABC):
    """Where examples come from. The typed keyword arguments of a subclass are what a config's `data:` may say.

    Attributes:
      batch_size: examples in one training batch, over all processes together.
    """

    batch_size: int

    @abc.abstractmethod
    def spec(self) -> DataSpec:
        """What is known before any example is read: from headers and metadata alone."""

    @abc.abstractmethod
    def split(self, name: str) -> Records:
        """The examples of `"train"`, `"validation"` or `"test"`; the three share no example.

        Raises:
          UserError: if there is no such split, or its data are missing, unreadable, empty or not finite.
        """


class InMemory(Records):
    """Columns of equal length in memory (or mapped into it), gathered a whole batch at a time.

    Args:
      columns: `x`, the inputs, of shape `(examples, ...)`; `y`, if there are labels, of shape `(examples, ...)`.
      origin: where the columns come from, for messages: a file's name.

    Raises:
      UserError: if the columns are empty, of unequal length, or hold NaN or infinity.

    Example:
      >>> records = InMemory({"x": np.arange(6.0).reshape(3, 2), "y": np.arange(3)}, "an example")
      >>> records.gather(np.array([2, 0]))["x"]
      array([[4., 5.],
             [0., 1.]])
    """

    def __init__(self, columns: Mapping[str, np.ndarray], origin: str):
        check_columns(columns, origin)
        self.columns = dict(columns)
        self.access = "mapped" if any(isinstance(column, np.memmap) for column in columns.values()) else "memory"

    def __len__(self) -> int:
        return len(self.columns["x"])

    def gather(self, indices: Integer[np.ndarray, " batch"]) -> Batch:
        # np.take gathers the small rows of images and points faster than column[indices] does.
        return {role: np.asarray(np.take(column, indices, axis=0)) for role, column in self.columns.items()}


class Subset(Records):
    """Some examples of other records, renumbered: example `i` is example `chosen[i]` of `records`.

    Example:
      >>> everything = InMemory({"x": np.arange(10.0)}, "an example")
      >>> Subset(everything, np.array([7, 3])).gather(np.array([0]))["x"]
      array([7.])
    """

    def __init__(self, records: Records, chosen: Integer[np.ndarray, " examples"]):
        self.records = records
        self.chosen = chosen
        self.access = records.access

    def __len__(self) -> int:
        return len(self.chosen)

    def gather(self, indices: Integer[np.ndarray, " batch"]) -> Batch:
        return self.records.gather(self.chosen[indices])


def hold_out(records: Records, fractions: Mapping[str, float], part: str, origin: str) -> Subset:
    """One part of training examples from which others are held out.

    Which examples are held out is drawn once and for all, from a fixed seed and their number: it does not change with the run.

    Args:
      records: the training examples.
      fractions: how large a part of them each other split takes: `{"validation": 0.1}`.
      part: the part to return: a name in `fractions`, or `"train"` for what they leave.
      origin: where the examples come from, for messages.

    Raises:
      UserError: if a part would be empty.

    Example:
      >>> records = InMemory({"x": np.arange(10.0)}, "an example")
      >>> [len(hold_out(records, {"validation": 0.2}, part, "an example")) for part in ("train", "validation")]
      [8, 2]
    """
    order = np.random.default_rng(0).permutation(len(records))
    sizes = {name: round(fraction * len(records)) for name, fraction in fractions.items()}
    sizes["train"] = len(records) - sum(sizes.values())
    if min(sizes.values()) < 1:
        shares = ", ".join(f"{max(size, 0)} for {name}" for name, size in sizes.items())
        raise UserError(f"{origin}: its {len(records)} examples would be divided into {shares}; every split needs one at least")
    end = np.cumsum(list(sizes.values()))[list(sizes).index(part)]
    return Subset(records, np.sort(order[end - sizes[part] : end]))


def check_split(name: str) -> None:
    """Raise `UserError` unless `name` is one of the three splits."""
    if name not in SPLITS:
        raise UserError(f"unknown split {name!r}{suggest(name, SPLITS)}; known: {', '.join(SPLITS)}")


def check_columns(columns: Mapping[str, np.ndarray], origin: str) -> None:
    """Raise `UserError` unless the columns have one length, above zero, and hold finite numbers."""
    lengths = {role: len(column) for role, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{origin}: every example needs {' and '.join(lengths)}, but their numbers differ: {lengths}")
    if lengths["x"] == 0:
        raise UserError(f"{origin} is empty: expected at least one example")
    for role, column in columns.items():
        check_finite(column, f"{role} of {origin}")


def check_finite(column: np.ndarray, what: str) -> None:
    """Raise `UserError` naming the first example that holds NaN or infinity."""
    if (first := first_not_finite(column)) is not None:
        raise UserError(f"{what} must be finite numbers, but example {first} holds NaN or infinity")


def first_not_finite(column: np.ndarray) -> int | None:
    """The first row that holds NaN or infinity, if there is one."""
    if not np.issubdtype(column.dtype, np.floating):
        return None
    rows = max(1, (1 << 22) // max(1, column[:1].nbytes))  # 4 MiB at a time, for files larger than memory
    for start in range(0, len(column), rows):
        part = column[start : start + rows]
        bad = ~np.isfinite(part).reshape(len(part), -1).all(axis=1)
        if bad.any():
            return start + int(bad.argmax())
    return None
