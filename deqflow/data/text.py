"""Text in plain files, as windows of tokens."""

import collections
import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int32, Integer

from deqflow.data.files import nearby
from deqflow.data.source import SPLITS, Batch, Records, Source, check_split
from deqflow.data.spec import DataSpec
from deqflow.registry import Range, UserError, check_ranges

UNKNOWN, END = "<unk>", "<eos>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Source):
    """Text in UTF-8 files, one for all splits or one for each, as windows of characters or words.

    A window is `context` tokens with the token that follows each: `context + 1` integers, the last of which the next window begins with,
    so that every token but a split's first is predicted once per epoch. Tokens at the end that fill no window are left out. Words are
    what white space separates, and a line ends with the word `<eos>`.

    The vocabulary is that of the training text: `<unk>`, which stands for all others, then the tokens in the order of their code points.

    Args:
      path: the training text; the others come from its end where they have no file of their own, the validation text before the test text.
      validation: the validation text.
      test: the test text.
      level: what a token is.
      context: length of a window.
      vocabulary_size: keep this many of the most frequent tokens at most, `<unk>` included.
      validation_fraction: how large a part of the characters (or words) validates where `validation` is not given.
      test_fraction: how large a part tests where `test` is not given.
      batch_size: windows in one training batch.

    Example:
      ```yaml
      data: {kind: text, path: data/tinyshakespeare/input.txt, level: char, context: 64}
      ```
    """

    path: str
    validation: str | None = None
    test: str | None = None
    level: Literal["char", "word"] = "char"
    context: Annotated[int, Range(ge=1)] = 64
    vocabulary_size: Annotated[int, Range(ge=2)] | None = None
    validation_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.05
    test_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.05
    batch_size: Annotated[int, Range(ge=1)] = 32

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def spec(self) -> DataSpec:
        """What the vocabulary alone decides, for which the training text is read."""
        counts = collections.Counter(self._tokens("train"))
        counts.pop(UNKNOWN, None)
        tokens = sorted(counts, key=lambda token: (-counts[token], token))  # of equally frequent ones the first in order
        if self.vocabulary_size is not None:
            tokens = tokens[: self.vocabulary_size - 1]
        vocabulary = (UNKNOWN, *sorted(tokens))
        return DataSpec((self.context + 1,), "int32", levels=len(vocabulary), vocabulary=vocabulary)

    def split(self, name: str) -> "Windows":
        check_split(name)
        number = {token: index for index, token in enumerate(self.spec().vocabulary or ())}
        tokens = self._tokens(name)
        if len(tokens) < self.context + 1:
            raise UserError(
                f"{self._origin(name)}: its {name} part has {len(tokens)} {self.level}s, fewer than one window of context + 1 = "
                f"{self.context + 1}; give more text or a shorter context"
            )
        return Windows(np.array([number.get(token, 0) for token in tokens], np.int32), self.context)

    def _origin(self, name: str) -> str:
        return self.path if name == "train" else getattr(self, name) or self.path

    def _tokens(self, name: str) -> str | list[str]:
        """The tokens of one split."""
        origin = self._origin(name)
        text = read_text(origin)
        tokens = text if self.level == "char" else text.replace("\n", f" {END} ").split()
        if origin != self.path:
            return tokens
        held = [round(getattr(self, f"{part}_fraction") * len(tokens)) if getattr(self, part) is None else 0 for part in SPLITS[1:]]
        edges = [0, len(tokens) - sum(held), len(tokens) - held[1], len(tokens)]
        index = SPLITS.index(name)
        return tokens[max(edges[index], 0) : max(edges[index + 1], 0)]


class Windows(Records):
    """Windows of `context + 1` tokens, each beginning with the last token of the one before.

    Example:
      >>> Windows(np.arange(8, dtype=np.int32), context=3).gather(np.array([1, 0]))["x"]
      array([[3, 4, 5, 6],
             [0, 1, 2, 3]], dtype=int32)
    """

    access = "memory"

    def __init__(self, tokens: Int32[np.ndarray, " tokens"], context: int) -> None:
        self.tokens = tokens
        self.context = context

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def gather(self, indices: Integer[np.ndarray, " batch"]) -> Batch:
        return {"x": self.tokens[indices[:, None] * self.context + np.arange(self.context + 1)]}


def read_text(path: str) -> str:
    """The text in a file, with one kind of line end.

    Raises:
      UserError: if the file is missing, unreadable, empty or not UTF-8.
    """
    place = Path(path).expanduser()
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file{nearby(place)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}; convert it first") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise UserError(f"{path} is empty: expected text")
    return text
