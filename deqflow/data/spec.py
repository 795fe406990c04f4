"""What is known of a data set before any example is read."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """Static facts that size a model, known before any example is read.

    They come from headers and metadata, and from the examples themselves only where nothing else tells, as with the vocabulary of a text.

    Attributes:
      input_shape: shape of one example's `x`, without the batch: `(8, 8, 1)` for grey images, `(2,)` for points in the plane.
      dtype: NumPy name of the type of `x` in a batch: `"uint8"`, `"float32"`, or for tokens `"int32"`.
      classes: number of classes of the integer labels `y`, or `None` where examples have no label.
      levels: number of values that an integer-valued `x` takes, `0 .. levels - 1` (256 for 8-bit images), or `None` for real `x`.
      entropy: differential entropy of the true density in nats, or `None` where it is not known.
      class_names: the classes in the words of the data set, or `None`.
      vocabulary: of text, the token that each integer in `x` stands for; otherwise `None`.
      label_shape: shape of one example's `y`: `()` for one label, `(8, 8)` for one at every pixel.
    """

    input_shape: tuple[int, ...]
    dtype: str
    classes: int | None = None
    levels: int | None = None
    entropy: float | None = None
    class_names: tuple[str, ...] | None = None
    vocabulary: tuple[str, ...] | None = None
    label_shape: tuple[int, ...] = ()
