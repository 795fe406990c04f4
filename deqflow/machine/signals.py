"""A command is asked to stop: ctrl-C, or a scheduler's SIGTERM."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Work that can be done again was given up, as a stop was requested."""


class StopRequest:
    """Within its context the first SIGINT or SIGTERM is only noted, so that a step is finished and a checkpoint saved.

    A second one acts at once, as it would outside. Of several processes each may get it at another step, or only one of them at all: there
    it counts from the next `agree` on, which all of them call after the same step.

    Args:
      largest: gives the largest of the numbers that the processes call it with; `None` for one process.

    Attributes:
      signal: the signal that came, or `None`.
    """

    def __init__(self, largest: Callable[[int], int] | None = None) -> None:
        self.signal: signal.Signals | None = None
        self._largest = largest
        self._noted = 0
        self._before: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Raise `Stopped` if a signal came to any process."""
        self.agree()
        if self.signal is not None:
            raise Stopped

    def agree(self) -> None:
        """Let a signal that came to any process count in all."""
        if self._largest is not None and (number := self._largest(self._noted)):
            self.signal = signal.Signals(number)

    def __enter__(self) -> "StopRequest":
        self._before = _handle(self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._noted = number
        if self._largest is None:
            self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextlib.contextmanager
def exit_at_once() -> Iterator[None]:
    """Within its context a SIGINT or SIGTERM ends the process: one line, and exit code 130 or 143.

    Python's own way, an exception in the midst of whatever runs, is lost if that is a callback from C, of which importing and compiling
    are full.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar may have hidden it
        os.write(2, f"{show_cursor}interrupted\n".encode())
        os._exit(128 + number)

    before = _handle(leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(handler: Any) -> dict[signal.Signals, Any]:
    """Set `handler` for the signals that are not ignored, as those of a job in the background are; return those before."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set handlers
        return {}
    return {number: signal.signal(number, handler) for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
