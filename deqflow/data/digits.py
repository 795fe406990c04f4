"""The handwritten digits that ship with scikit-learn."""

import dataclasses
from typing import Annotated

import numpy as np

from deqflow.data.source import InMemory, Source, check_split
from deqflow.data.spec import DataSpec
from deqflow.registry import Range, UserError, check_ranges

_SIZES = {"train": 1257, "validation": 180, "test": 360}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """Handwritten digits of scikit-learn: 1797 grey images of 8 x 8 pixels, 17 levels, 10 classes.

    The split is fixed: of a seeded permutation, the first 1257 examples train, the next 180 validate, the last 360 test.

    Args:
      batch_size: examples in one training batch.

    Example:
      >>> Digits().spec().input_shape
      (8, 8, 1)
      >>> len(Digits().split("test"))
      360

    Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998 (its test set).
    """

    batch_size: Annotated[int, Range(ge=1)] = 128

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def spec(self) -> DataSpec:
        return DataSpec((8, 8, 1), "uint8", classes=10, levels=17, class_names=tuple("0123456789"))

    def split(self, name: str) -> InMemory:
        check_split(name)
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise UserError("data kind 'digits' needs scikit-learn: pip install 'deqflow[train]'") from error
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        ends = np.cumsum(list(_SIZES.values()))
        end = ends[list(_SIZES).index(name)]
        chosen = order[end - _SIZES[name] : end]
        x = images[chosen].reshape(-1, 8, 8, 1).astype(np.uint8)
        return InMemory({"x": x, "y": labels[chosen].astype(np.int32)}, f"digits, split {name!r}")
