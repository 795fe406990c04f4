"""What is wrong with a config, told all at once."""

import dataclasses
from collections.abc import Sequence

from deqflow.registry import UserError

_MAX_LENGTH = 1000
_MAX_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Where:
    """A place that a value comes from: a line of a file, or an override on the command line.

    Attributes:
      source: a file's name as the user gave it, or `override 'train.steps=5'`.
      line: line of the file, from 1; `None` where there is no line to name.
    """

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, which entry it concerns (`model.solver.histroy`, empty for the file as a whole), and what to do."""

    where: Where
    path: str
    message: str

    def __str__(self) -> str:
        parts = (str(self.where), _printable(self.path), _printable(self.message))
        return ": ".join(part for part in parts if part)


def _printable(text: str) -> str:
    """`text` on one line of a reasonable length."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "..."


class ConfigError(UserError):
    """All that is wrong with a config.

    Attributes:
      problems: the mistakes, in the order of the config.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:_MAX_SHOWN]]
        if len(self.problems) > _MAX_SHOWN:
            lines.append(f"... and {len(self.problems) - _MAX_SHOWN} more")
        super().__init__(lines[0] if len(lines) == 1 else "\n  ".join([f"the config has {len(self.problems)} problems:", *lines]))

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...]]]:
        return ConfigError, (self.problems,)
