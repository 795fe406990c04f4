"""What a run measures, on disk: `metrics.jsonl`, `timing.jsonl`, `events.jsonl` and TensorBoard event files."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from deqflow.registry import UserError
from deqflow.runs.directory import write_whole
from deqflow.runs.events import Events

Row = dict[str, float | int | str]
"""One line: `step`, in `metrics.jsonl` the `split`, and numbers by name."""

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MetricsWriter:
    """Writes the numbers of a run as they come; every row is on its way to the disk before the call returns.

    `metrics.jsonl` holds what training computes, and is the same for two runs of the same config on the same machine: keys are
    `step`, `split`, then the rest in alphabetical order, numbers as Python's `repr` writes them. JSON has no number that is not
    finite, so those are the strings `"nan"`, `"inf"` and `"-inf"`, which `read_rows` turns back. `timing.jsonl` holds the clock,
    which never repeats; `events.jsonl` what befell the processes of the run, one after the other, and nothing of it is ever dropped. The
    event files under `tensorboard/` show the finite ones of the numbers as `split/name`, and the events as texts.

    A resumed run must look as if it had never stopped: rows after the step that was restored, a test (which comes last), and
    a last line that was being written when the run was killed, are dropped. For this to be exact, the trainer writes the rows of
    a step, calls `sync`, and only then saves the checkpoint of that step.

    Args:
      run_dir: directory of the run; it exists.
      resume_step: the step that was restored, or `None` to start from nothing (rows found are then dropped).

    Raises:
      OSError: if the files cannot be written.
      UserError: if a file that is there holds other lines than rows.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as run, MetricsWriter(Path(run)) as writer:
      ...     writer.write(20, "train", {"loss": 0.5, "accuracy": 0.75})
      ...     print((Path(run) / "metrics.jsonl").read_text(), end="")
      {"step": 20, "split": "train", "accuracy": 0.75, "loss": 0.5}
    """

    def __init__(self, run_dir: Path, resume_step: int | None = None) -> None:
        self._files: dict[str, TextIO] = {}
        for name in ("metrics", "timing", "events"):
            path = run_dir / f"{name}.jsonl"
            _keep_until(path, math.inf if name == "events" else -1 if resume_step is None else resume_step)
            self._files[name] = path.open("a", encoding="utf-8", newline="\n")
        first = 0 if resume_step is None else resume_step + 1
        self._events = Events(run_dir / "tensorboard", first)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Add a row of numbers (Python, NumPy or JAX scalars) measured on `split` after `step` updates."""
        row = {"step": int(step), "split": split, **{name: _number(values[name]) for name in sorted(values)}}
        self._append("metrics", row)
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step" and math.isfinite(value):  # tensorboardX prints a warning for others
                self._events.scalar(f"{split}/{name}", value, step)
        self._events.flush()

    def timing(self, step: int, seconds: float, measured: Mapping[str, float | int | None]) -> None:
        """Add a row to `timing.jsonl`: seconds since the process began to train, and what else is known of speed and memory by then."""
        known = {name: value for name, value in measured.items() if value is not None}
        self._append("timing", {"step": int(step), "seconds": float(seconds), **known})
        for name, value in known.items():
            self._events.scalar(f"time/{name}", value, step)

    def event(self, step: int, kind: str, message: str) -> None:
        """Add a row to `events.jsonl`: when the process was at `step`, something of that kind happened."""
        self._append("events", {"step": int(step), "event": kind, "message": message, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        self._events.text(f"events/{kind}", message, step)
        self._events.flush()

    def picture(self, step: int, name: str, figure: Any) -> None:
        """Show a figure of Matplotlib among TensorBoard's images."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self._events.image(f"plots/{name}", np.asarray(canvas.buffer_rgba())[..., :3], step)

    def sync(self) -> None:
        """Return once the rows are on the disk, so that a checkpoint saved next never lies ahead of them."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Write out what is pending and close the files."""
        for file in self._files.values():
            file.close()
        self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _append(self, name: str, row: Row) -> None:
        encoded = {key: repr(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        file = self._files[name]
        file.write(json.dumps(encoded, allow_nan=False) + "\n")
        file.flush()


def read_rows(path: Path) -> list[Row]:
    """The rows of a `.jsonl` file in the order they were written, non-finite numbers restored.

    A last line that a killed process left unfinished is skipped.

    Raises:
      UserError: if any other line is not a row.
      OSError: if the file cannot be read.
    """
    return [row for row, _ in _parse(path)]


def _parse(path: Path) -> list[tuple[Row, str]]:
    """Every row with the line it stands in."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    parsed = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break  # every row ends with a newline, so this one was cut
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: expected a row with a step, got {line.strip()[:80]!r}") from error
        parsed.append(({key: _NON_FINITE.get(value, value) if key != "split" else value for key, value in row.items()}, line))
    return parsed


def _keep_until(path: Path, step: float) -> None:
    """Drop the rows after `step`, and those of the test that ends a run, from the file, all at once; create it where there is none."""
    rows = _parse(path) if path.exists() and step >= 0 else []
    kept = [line for row, line in rows if int(row["step"]) <= step and row.get("split") != "test"]
    write_whole(path, "".join(kept))


def _number(value: Any) -> float | int:
    """`value` as a Python number: an integer where it is one."""
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "biufV":  # "V": NumPy's kind of bfloat16
        raise ValueError(f"a metric must be one number, got {type(value).__name__} of shape {array.shape} and type {array.dtype}")
    return int(array) if array.dtype.kind in "biu" else float(array)
