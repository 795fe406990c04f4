"""A user's own arrays, in `.npz`, `.npy` and IDX files."""

import dataclasses
import os
from typing import Annotated

import numpy as np
from jaxtyping import Int32, Shaped

from deqflow.data.files import Header, array_names, read_array, read_header
from deqflow.data.source import InMemory, Records, Source, check_split, hold_out
from deqflow.data.spec import DataSpec
from deqflow.registry import Range, UserError, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays(Source):
    """Arrays in `.npz`, `.npy` and IDX files, gzipped or not, one file for each split's inputs and one for its labels.

    A file is a path, from `folder` or `~`; an array of an `.npz` file is `path.npz:name`. From an `.npz` file without a name,
    the inputs are its array `x` and the labels its array `y`, if it has one. Inputs have one example per row; grey images `(examples,
    height, width)` get an axis for their channel. Integers are the levels of an image; other numbers become float32.

    Args:
      train: inputs to train on.
      folder: where the files are, if not in the current directory.
      train_labels: their labels, integers `0 .. classes - 1`; without labels there is no `y`.
      validation: inputs to validate on; without them, a part of the training examples.
      validation_labels: their labels.
      test: inputs to test on; without them, a part of the training examples.
      test_labels: their labels.
      validation_fraction: how large a part of the training examples validates where `validation` is not given.
      test_fraction: how large a part of the training examples tests where `test` is not given.
      levels: number of values of integer inputs; 256 for 8-bit unsigned integers.
      classes: number of classes; counted from the training labels where not given.
      batch_size: examples in one training batch.

    Example:
      The official files of MNIST, in a config:

      ```yaml
      data:
        kind: arrays
        folder: data/mnist
        train: train-images-idx3-ubyte.gz
        train_labels: train-labels-idx1-ubyte.gz
        test: t10k-images-idx3-ubyte.gz
        test_labels: t10k-labels-idx1-ubyte.gz
      ```
    """

    train: str
    folder: str | None = None
    train_labels: str | None = None
    validation: str | None = None
    validation_labels: str | None = None
    test: str | None = None
    test_labels: str | None = None
    validation_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.1
    test_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.1
    levels: Annotated[int, Range(ge=2)] | None = None
    classes: Annotated[int, Range(ge=1)] | None = None
    batch_size: Annotated[int, Range(ge=1)] = 128

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))
        for name in ("validation", "test"):
            if getattr(self, f"{name}_labels") is not None and getattr(self, name) is None:
                raise UserError(f"{name}_labels is given without {name}, whose labels it would hold")

    def spec(self) -> DataSpec:
        inputs, labels = self._files("train")
        header = read_header(*inputs)
        shape, dtype = _example(header, _written(inputs))
        classes = None if labels is None else self.classes or int(_labels(labels).max(initial=0)) + 1
        return DataSpec(shape, dtype, classes=classes, levels=self._levels(header.dtype, _written(inputs)))

    def split(self, name: str) -> Records:
        check_split(name)
        records = self._load("train" if getattr(self, name) is None else name)
        held = {
            part: fraction
            for part, fraction in (("validation", self.validation_fraction), ("test", self.test_fraction))
            if getattr(self, part) is None
        }
        if name in held or (name == "train" and held):
            return hold_out(records, held, name, self.train)
        return records

    def _files(self, name: str) -> tuple[tuple[str, str | None], tuple[str, str | None] | None]:
        """Where a split's inputs and labels are: path and the array's name, if it has one."""
        inputs, labels = self._location(getattr(self, name)), getattr(self, f"{name}_labels")
        if labels is not None:
            return inputs, self._location(labels)
        names = array_names(inputs[0]) if inputs[1] is None else []
        if "x" in names:
            return (inputs[0], "x"), (inputs[0], "y") if "y" in names else None
        return inputs, None

    def _location(self, text: str) -> tuple[str, str | None]:
        """Path and array name of `path.npz:name`."""
        path, mark, name = text.rpartition(".npz:")
        path, name = (f"{path}.npz", name) if mark else (text, None)
        return path if self.folder is None else os.path.join(self.folder, os.path.expanduser(path)), name

    def _load(self, name: str) -> InMemory:
        """The examples in a split's own files, as the specification promises them."""
        spec = self.spec()
        inputs, labels = self._files(name)
        origin = _written(inputs)
        if (labels is None) != (spec.classes is None):
            has, has_not = ("train", name) if labels is None else (name, "train")
            raise UserError(f"{origin}: {has} has labels and {has_not} has none; give both or neither")
        header = read_header(*inputs)
        found = _example(header, origin)
        if found != (spec.input_shape, spec.dtype):
            raise UserError(
                f"{origin}: examples of {name} are {found[1]} of shape {found[0]}, those of train {spec.dtype} of shape {spec.input_shape}"
            )
        raw = read_array(*inputs)
        if spec.levels is not None:
            _check_range(raw, spec.levels, f"inputs of {origin}", "levels")
        columns = {"x": _converted(raw.reshape(len(raw), *spec.input_shape), spec.dtype)}
        if labels is not None and spec.classes is not None:
            columns["y"] = _labels(labels)
            _check_range(columns["y"], spec.classes, f"labels of {_written(labels)}", "classes")
        return InMemory(columns, origin)

    def _levels(self, dtype: np.dtype, origin: str) -> int | None:
        """How many values an input of this type takes."""
        if dtype.kind == "b":
            return 2
        if dtype.kind not in "iu":
            if self.levels is not None:
                raise UserError(f"levels is for integer inputs, but {origin} holds {dtype}")
            return None
        if self.levels is None and dtype != np.uint8:
            raise UserError(f"{origin} holds {dtype}: say with levels how many values its integers take (0 .. levels - 1)")
        if self.levels is not None and self.levels > 256:
            raise UserError(f"levels must be at most 256, got {self.levels}; give inputs with more values as float32")
        return self.levels or 256


def _written(location: tuple[str, str | None]) -> str:
    """A location as its user would write it."""
    path, name = location
    return path if name is None else f"{path}:{name}"


def _example(header: Header, origin: str) -> tuple[tuple[int, ...], str]:
    """Shape and type of one example of a batch."""
    shape, kind = header.shape[1:], header.dtype.kind
    if kind not in "biuf":
        raise UserError(f"{origin} holds {header.dtype}, expected integers or real numbers")
    if not shape:
        raise UserError(f"{origin} has shape {header.shape}, expected one example per row: (examples, features) or more axes")
    if 0 in header.shape:
        raise UserError(f"{origin} is empty: its shape is {header.shape}")
    return (*shape, 1) if len(shape) == 2 else shape, "float32" if kind == "f" else "uint8"


def _labels(location: tuple[str, str | None]) -> Int32[np.ndarray, " examples"]:
    """The labels in a file, checked to be class numbers."""
    header, origin = read_header(*location), _written(location)
    if header.dtype.kind not in "iub" or header.shape[1:] not in ((), (1,)):
        raise UserError(f"labels of {origin} are {header.dtype} of shape {header.shape}, expected integers of shape (examples,)")
    labels = np.asarray(read_array(*location)).reshape(-1)
    if labels.size and int(labels.min()) < 0:
        raise UserError(f"labels of {origin} must be 0 or more, but example {int(labels.argmin())} has {labels.min()}")
    return labels.astype(np.int32)


def _check_range(column: np.ndarray, count: int, what: str, argument: str) -> None:
    """Raise `UserError` unless all integers lie in `0 .. count - 1`."""
    if not column.size or column.dtype.kind == "b":
        return
    low, high = int(column.min()), int(column.max())
    if low < 0 or high >= count:
        raise UserError(f"{what} must lie in 0 .. {count - 1} ({argument} = {count}), but range over {low} .. {high}")


def _converted(column: Shaped[np.ndarray, "..."], dtype: str) -> Shaped[np.ndarray, "..."]:
    """The column in the type of a batch; left as it is, mapped or not, where it has that type."""
    with np.errstate(over="ignore"):  # what overflows becomes infinity, which is refused afterwards
        return column.astype(dtype, copy=False)
