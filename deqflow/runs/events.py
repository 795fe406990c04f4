"""TensorBoard event files, without TensorFlow."""

import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  # made by protobuf at run time


class Events:
    """Writes one event file of a folder.

    Each call writes by itself: the writer that tensorboardX offers leaves it to a thread, and waits for ever when that has met a
    full disk.

    Args:
      folder: created if it is missing.
      first: TensorBoard hides what earlier files say of this step and later ones.

    Raises:
      OSError: if the file cannot be written; so do the methods.
    """

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Without the suffix, a process that starts within the same second would overwrite the file of the earlier one.
        self._writer = EventsWriter(str(folder / "events"), f".{first}")
        self._write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add one number."""
        self._write(Event(step=step, summary=summary.scalar(tag, value)))

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """Add a picture of shape `(height, width, 3)` and type uint8."""
        self._write(Event(step=step, summary=summary.image(tag, pixels, dataformats="HWC")))

    def text(self, tag: str, words: str, step: int) -> None:
        """Add a line, which TensorBoard reads as Markdown."""
        self._write(Event(step=step, summary=summary.text(tag, words)))

    def flush(self) -> None:
        """Hand over what was added to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Write out what is pending and close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
