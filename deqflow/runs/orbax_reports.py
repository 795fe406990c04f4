"""What Orbax says besides raising an exception: its log, threads that die of an error, reads that nobody waits for any more."""

import errno
import gc
import logging
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

_LOGGERS = ("absl", "asyncio")


class Reports(logging.Handler):
    """Within its context, keeps what Orbax would print on standard error.

    One damaged file makes dozens of reads fail, each of which is reported on a way of its own, and some failures are reported
    and not raised at all. The first report since `clear` is the reason that is worth telling.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._reasons: list[str] = []
        self._before: list[tuple[logging.Logger, list[logging.Handler], bool]] = []
        self._unraisable: Any = None
        self._thread: Any = None

    def clear(self) -> None:
        """Forget what was reported so far."""
        self._reasons.clear()

    def reason(self, error: BaseException | None = None) -> str:
        """The first report, else `error`, on one line, without what concerns the developers of Orbax alone."""
        text = self._reasons[0] if self._reasons else "" if error is None else str(error) or type(error).__name__
        for refusal in map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)):
            if refusal in text:
                return refusal
        for noise in (" [tensorstore_spec=", " [source locations="):
            text = text.partition(noise)[0]
        text = " ".join(text.split())
        return text if len(text) <= 300 else f"{text[:100]} ... {text[-195:]}"

    def collect(self) -> None:
        """Wait for the reads that are still under way after a failure, so that they report here; call it when the error is forgotten."""
        time.sleep(0.5)
        gc.collect()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the error that a log record tells of."""
        if record.name == "absl":
            self._reasons.append(str(record.exc_info[1]) if record.exc_info and record.exc_info[1] else record.getMessage())

    def __enter__(self) -> "Reports":
        for logger in map(logging.getLogger, _LOGGERS):
            self._before.append((logger, logger.handlers, logger.propagate))
            logger.handlers, logger.propagate = [self], False
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._note_unraisable
        self._thread, threading.excepthook = threading.excepthook, self._note_thread
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        sys.unraisablehook, threading.excepthook = self._unraisable, self._thread
        for logger, handlers, propagate in self._before:
            logger.handlers, logger.propagate = handlers, propagate
        self._before = []

    def _note_unraisable(self, report: Any) -> None:
        # Orbax closes its event loop at the first failure; each read that ends later meets a closed loop in its own thread, or is one
        # of its coroutines that nobody waits for any more.
        code = getattr(report.object, "cr_code", None)
        ours = code is not None and "orbax" in code.co_filename
        if not ours and not (isinstance(report.exc_value, RuntimeError) and "loop is closed" in str(report.exc_value)):
            self._unraisable(report)

    def _note_thread(self, report: Any) -> None:
        if type(report.thread).__module__.partition(".")[0] == "orbax":
            self._reasons.append(str(report.exc_value))
        else:
            self._thread(report)
