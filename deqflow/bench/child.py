"""Runs one compiled program in a process of its own, and reports how much memory and time it takes.

`python child.py FOLDER SECONDS`: FOLDER holds `program` and `arguments`; `report` is put there. Of deqflow nothing is needed.
"""

import contextlib
import ctypes
import pickle
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.serialize_executable import deserialize_and_load

_REPEATS = 7


def main(folder: Path, limit: float) -> None:
    """Run the program a few times, for no longer than about `limit` seconds but twice at least."""
    with contextlib.suppress(OSError):  # should memory run out, this is the process to end
        Path("/proc/self/oom_score_adj").write_text("1000")
    one = jax.ShapeDtypeStruct((1, 1), "float32")
    jax.jit(jnp.linalg.qr).lower(one)  # loads LAPACK, without which a program that calls it crashes
    device = jax.local_devices()[0]
    program = deserialize_and_load(*pickle.loads((folder / "program").read_bytes()), execution_devices=[device])
    arguments = jax.block_until_ready(jax.device_put(pickle.loads((folder / "arguments").read_bytes()), device))

    peaks, times, began = [], [], time.perf_counter()
    outputs, idle = None, _high_water(device)
    while len(times) < 2 or (len(times) <= _REPEATS and time.perf_counter() - began < limit):
        del outputs
        if (settled := _settle(device)) is not None:
            idle = settled
        start = time.perf_counter()
        outputs = jax.block_until_ready(program(arguments))
        times.append(time.perf_counter() - start)
        peaks.append(max(0, _high_water(device) - idle))
    report = {
        "outputs": jax.device_get(outputs),
        "peak_bytes": int(statistics.median(peaks[1:])),  # the first run also loads code and starts threads
        "seconds": statistics.median(times[1:]),
    }
    (folder / "report").write_bytes(pickle.dumps(report))


def _settle(device: Any) -> int | None:
    """The bytes in use before a run, above which the high-water mark will rise; `None` where only what it was at first is known."""
    if counts := device.memory_stats():
        return counts["bytes_in_use"]
    time.sleep(0.05)  # the temporaries of the last run are freed a little after its outputs are ready
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident now
        return _status("VmRSS")
    except OSError:  # not Linux, or not permitted
        return None


def _high_water(device: Any) -> int:
    """The most bytes that were in use: of the device's allocator if it counts, else of this process."""
    if counts := device.memory_stats():
        return counts["peak_bytes_in_use"]
    try:
        return _status("VmHWM")
    except OSError:  # not Linux
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), float(sys.argv[2]))
    except Exception as error:  # told in one line, on which the parent counts
        sys.exit(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
