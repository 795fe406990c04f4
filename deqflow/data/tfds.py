"""Data sets of TensorFlow Datasets, prepared on disk and read without TensorFlow."""

import dataclasses
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
from jaxtyping import Integer

from deqflow.data.source import Batch, InMemory, Records, Source, check_split, first_not_finite, hold_out
from deqflow.data.spec import DataSpec
from deqflow.registry import Range, UserError, check_ranges, suggest


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS(Source):
    """Any data set of TensorFlow Datasets with inputs of one shape, prepared as `array_record` (`scripts/prepare_tfds.py`).

    The inputs and labels are the `supervised_keys` of the data set, or its only image and class label, unless named. Where there is no
    validation or test split, a part of the training examples, the same in every run, takes its place.

    Args:
      name: `mnist`; with a configuration `name/config`, with a version `name:1.0.0`.
      data_dir: where data sets are prepared; by default `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
      train: split to train on, in the words of TFDS: `train[:90%]`.
      validation: split to validate on; by default `validation`, if there is one. Named, it must not overlap with the others.
      test: split to test on; by default `test`, if there is one. Named, it must not overlap with the others.
      validation_fraction: how large a part of the training examples validates where there is no validation split.
      test_fraction: how large a part of the training examples tests where there is no test split.
      image_key: the feature that is the input `x`.
      label_key: the feature that is the label `y`, a class label.
      in_memory: read and decode a split once and keep it. For small data sets: decoding an MNIST image anew each time takes 0.3 ms.
      batch_size: examples in one training batch.

    Example:
      ```yaml
      data: {kind: tfds, name: mnist, in_memory: true}
      ```

    https://www.tensorflow.org/datasets
    """

    name: str
    data_dir: str | None = None
    train: str = "train"
    validation: str | None = None
    test: str | None = None
    validation_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.1
    test_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.1
    image_key: str | None = None
    label_key: str | None = None
    in_memory: bool = False
    batch_size: Annotated[int, Range(ge=1)] = 128

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def spec(self) -> DataSpec:
        features = _builder(self.name, self._directory()).info.features
        image, label = self._keys(features)
        shape, dtype, levels = self._input(image, features[image])
        classes = None if label is None else features[label]
        return DataSpec(
            shape,
            dtype,
            classes=None if classes is None else classes.num_classes,
            levels=levels,
            class_names=None if classes is None else tuple(classes.names),
        )

    def split(self, name: str) -> Records:
        check_split(name)
        builder = _builder(self.name, self._directory())
        if not builder.info.splits:
            raise UserError(f"data set {self.name!r} is not prepared in {self._directory()}: {self._remedy()}")
        asked = {part: getattr(self, part) or (part if part in builder.info.splits else None) for part in ("validation", "test")}
        held = {part: getattr(self, f"{part}_fraction") for part, split in asked.items() if split is None}
        records = self._read(builder, self.train if name == "train" or name in held else str(asked[name]))
        if name in held or (name == "train" and held):
            records = hold_out(records, held, name, self.name)
        if self.in_memory:
            return InMemory(records.gather(np.arange(len(records))), f"{self.name}, split {name!r}")
        return records

    def _directory(self) -> str:
        """Where data sets are prepared."""
        default = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
        return str(Path(self.data_dir or default).expanduser())

    def _remedy(self) -> str:
        return f"run python scripts/prepare_tfds.py {self.name} --data-dir {self._directory()}"

    def _keys(self, features: Any) -> tuple[str, str | None]:
        """The features that are `x` and `y`."""
        tfds = _tensorflow_datasets()
        given, known = (self.image_key, self.label_key), list(features)
        for argument, key in zip(("image_key", "label_key"), given, strict=True):
            if key is not None and key not in known:
                raise UserError(f"{argument}: {self.name} has no feature {key!r}{suggest(key, known)}; it has: {', '.join(known)}")
        images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
        supervised = _builder(self.name, self._directory()).info.supervised_keys
        pair = supervised if supervised and all(isinstance(key, str) for key in supervised) and len(supervised) == 2 else (None, None)
        image = self.image_key or pair[0] or (images[0] if len(images) == 1 else None)
        if image is None:
            raise UserError(f"image_key: say which feature of {self.name} is the input; it has: {', '.join(known)}")
        if self.label_key is not None and self.label_key not in labels:
            known = ", ".join(labels) or "none"
            raise UserError(f"label_key: feature {self.label_key!r} of {self.name} is no class label; class labels: {known}")
        guess = pair[1] if pair[1] in labels else labels[0] if len(labels) == 1 else None
        return image, self.label_key or guess

    def _input(self, key: str, feature: Any) -> tuple[tuple[int, ...], str, int | None]:
        """Shape, type and levels of an example's `x`."""
        shape, dtype = getattr(feature, "shape", None), np.dtype(getattr(feature, "np_dtype", object))
        if not isinstance(shape, tuple) or not shape or dtype.kind not in "buf":
            raise UserError(f"feature {key!r} of {self.name} is {feature!r}; the input must be an array of 8-bit or real numbers")
        if None in shape:
            raise UserError(f"feature {key!r} of {self.name} has shape {shape}: sizes differ (None), but a model needs inputs of one shape")
        if dtype.kind == "u" and dtype != np.uint8:
            raise UserError(f"feature {key!r} of {self.name} is {dtype}; the input must be an array of 8-bit or real numbers")
        levels = {"b": 2, "u": 256, "f": None}[dtype.kind]
        return (*shape, 1) if len(shape) == 2 else shape, "float32" if levels is None else "uint8", levels

    def _read(self, builder: Any, split: str) -> "DiskRecords":
        """The examples of one split of TFDS."""
        file_format = builder.info.file_format
        if file_format is None or file_format.value not in ("array_record", "parquet"):
            found = "an unknown format" if file_format is None else file_format.value
            raise UserError(f"{builder.data_path} holds {found}, which cannot be read in random order without TensorFlow: {self._remedy()}")
        origin = f"split {split!r} of {self.name}"
        try:
            count = builder.info.splits[split].num_examples
            reader = builder.as_data_source(split) if count else None
        except Exception as error:  # TFDS and its readers raise many types; each means that this split cannot be opened
            known = ", ".join(builder.info.splits)
            raise UserError(f"{origin} in {builder.data_path} cannot be opened ({_first_line(error)}); splits: {known}") from error
        if reader is None:
            raise UserError(f"{origin} in {builder.data_path} is empty")
        records = DiskRecords(reader, *self._keys(builder.info.features), self.spec(), origin)
        records.gather(np.array([0, len(records) - 1]))  # a missing or damaged file is better told now than in the middle of training
        return records


class DiskRecords(Records):
    """Examples on disk, each read and decoded when it is asked for.

    Args:
      reader: has `len`, and `__getitems__` that reads examples as dicts by their numbers.
      image: the key of `x` in an example.
      label: the key of `y`, if there are labels.
      spec: what every example must look like.
      origin: where the examples come from, for messages.
    """

    def __init__(self, reader: Any, image: str, label: str | None, spec: DataSpec, origin: str):
        self.reader, self.image, self.label, self.spec, self.origin = reader, image, label, spec, origin
        self.access = "records"

    def __len__(self) -> int:
        return len(self.reader)

    def gather(self, indices: Integer[np.ndarray, " batch"]) -> Batch:
        try:
            examples = self.reader.__getitems__(indices.tolist())
        except ImportError as error:
            raise UserError(f"{self.origin}: {_first_line(error)} pip install 'deqflow[train]'") from error
        except Exception as error:  # as above: whatever it is, these examples cannot be read
            raise UserError(
                f"{self.origin}: examples cannot be read, the file may be damaged ({_first_line(error)}); prepare it again"
            ) from error
        x = np.stack([example[self.image] for example in examples]).reshape(len(examples), *self.spec.input_shape)
        batch = {"x": x.astype(self.spec.dtype, copy=False)}
        if (bad := first_not_finite(batch["x"])) is not None:
            raise UserError(f"{self.origin}: {self.image} must be finite numbers, but example {indices[bad]} holds NaN or infinity")
        if self.label is not None:
            batch["y"] = np.asarray([example[self.label] for example in examples], np.int32)
            if batch["y"].min() < 0:
                raise UserError(f"{self.origin}: example {indices[batch['y'].argmin()]} has no label ({self.label} = {batch['y'].min()})")
        return batch


def _builder(name: str, directory: str) -> Any:
    """The builder of a data set, which knows its metadata; nothing is prepared or downloaded."""
    tfds = _tensorflow_datasets()
    try:
        return tfds.builder(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError as error:
        here = [entry.name for entry in Path(directory).iterdir() if entry.is_dir()] if Path(directory).is_dir() else []
        known = sorted({*here, *tfds.list_builders(with_community_datasets=False)})
        raise UserError(
            f"unknown data set {name!r}{suggest(name, known)} (neither among the {len(known)} that TFDS knows nor prepared in {directory})"
        ) from error
    except PermissionError as error:
        raise UserError(f"no permission to read {error.filename or directory}") from error
    except Exception as error:  # an unknown configuration or version, or metadata that cannot be parsed
        raise UserError(f"data set {name!r} in {directory} cannot be opened: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What TFDS says, without the list of its own arguments in front and its advice behind."""
    text = str(error.args[0]) if error.args else type(error).__name__
    return text.rpartition('}": ')[2].partition(" Here are")[0].strip().partition("\n")[0]


def _tensorflow_datasets() -> ModuleType:
    """TFDS, imported when it is needed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"data kind 'tfds' needs tensorflow-datasets: pip install 'deqflow[train]' ({error})") from error
    logger = logging.getLogger("absl")
    if _no_advice not in logger.filters:
        logger.addFilter(_no_advice)
    return tfds


def _no_advice(record: logging.LogRecord) -> bool:
    """Drop TFDS's advice to install OpenCV: it concerns speed alone, and once per process."""
    return "OpenCV is not installed" not in record.getMessage()
