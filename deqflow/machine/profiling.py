"""Where time and memory go: a trace of a few training steps, and the most memory that was in use."""

import sys
from pathlib import Path
from typing import Any

import jax

_SKIPPED, _RECORDED = 2, 10
"""Steps before a trace, the first of which compiles, and in it."""


def peak_bytes() -> int | None:
    """The most memory of the first device that was in use so far; on the CPU, of this process. `None` where nobody counts."""
    if counts := jax.local_devices()[0].memory_stats():
        return counts.get("peak_bytes_in_use")
    if sys.platform not in ("linux", "darwin"):
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


class Trace:
    """Records what host and devices do in some ten steps, once the first ones have compiled and warmed up.

    TensorBoard (with its profile plugin) and XProf show what is then in `folder`. Recording slows these steps down.

    Args:
      folder: created when recording begins; `None` to record nothing.
      begin: the step that training starts from.
    """

    def __init__(self, folder: Path | None = None, begin: int = 0) -> None:
        self._folder = folder
        self._first = begin + _SKIPPED
        self._recording = False

    def before(self, step: int, under_way: Any) -> None:
        """Begin or end the recording where it is due, before the step after `step`; `under_way` are arrays of the steps before."""
        begins = step == self._first and not self._recording
        ends = self._recording and step >= self._first + _RECORDED
        if self._folder is None or not (begins or ends):
            return
        jax.block_until_ready(under_way)  # what was started before counts before
        if ends:
            self.close()
        else:
            jax.profiler.start_trace(self._folder)
            self._recording = True

    def close(self) -> None:
        """End the recording if it is under way."""
        if self._recording:
            self._recording = False
            jax.profiler.stop_trace()
