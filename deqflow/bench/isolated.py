"""Compile a function here, and run it in a process of its own, where nothing else takes memory."""

import contextlib
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.experimental.serialize_executable import serialize

from deqflow.bench import child


class ChildError(RuntimeError):
    """The process failed; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one process reports.

    Attributes:
      outputs: what the program returned, with NumPy arrays for leaves.
      peak_bytes: the most memory that was in use while it ran, above that of the idle process which already held program and arguments.
      seconds: median time of a run.
    """

    outputs: Any
    peak_bytes: int
    seconds: float


class Program:
    """A compiled function.

    Args:
      function: what to compile, from pytrees of arrays to lists and tuples of arrays.
      arguments: what it is called with.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        leaves, tree = jax.tree.flatten(arguments)
        # A key of the random numbers travels as the integers that it is made of.
        kinds = [jax.random.key_impl(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else None for leaf in leaves]
        self._arrays = jax.device_get(
            [leaf if kind is None else jax.random.key_data(leaf) for leaf, kind in zip(leaves, kinds, strict=True)]
        )

        def of_arrays(arrays: list[Any]) -> Any:
            whole = [
                array if kind is None else jax.random.wrap_key_data(array, impl=kind) for array, kind in zip(arrays, kinds, strict=True)
            ]
            return function(*jax.tree.unflatten(tree, whole))

        with _no_cache():
            self._compiled = jax.jit(of_arrays).lower(self._arrays).compile()

    @property
    def bytes(self) -> int | None:
        """The memory that XLA has planned beside the arguments: temporaries and outputs. `None` where the backend does not say."""
        plan = self._compiled.memory_analysis()
        return None if plan is None else plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes

    def run(self, seconds: float) -> Measured:
        """Run it in a process of its own, for about so many seconds but twice at least.

        Raises:
          ChildError: if the process does not end well.
        """
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "program").write_bytes(pickle.dumps(serialize(self._compiled)))
            (Path(folder) / "arguments").write_bytes(pickle.dumps(self._arrays))
            command = [sys.executable, "-P", child.__file__, folder, str(seconds)]
            done = subprocess.run(
                command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
            )
            if done.returncode != 0:
                raise ChildError(_reason(done.returncode, done.stderr))
            return Measured(**pickle.loads((Path(folder) / "report").read_bytes()))


def free_bytes() -> int | None:
    """The memory that a new program may plan with, so that nothing is swapped out, or `None` where that is not known.

    Nine tenths of what is free, as its process needs some too.
    """
    if counts := jax.local_devices()[0].memory_stats():
        return counts["bytes_limit"] - counts["bytes_in_use"]
    found = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    for limit, usage in _CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):  # no limit is the word `max`, or no file
            found.append(int(Path(limit).read_text()) - int(Path(usage).read_text()))
    return 9 * min(found) // 10 if found else None


_CONTROL_GROUPS = [
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
]


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Compile anew: an executable that came from the persistent cache of the CPU cannot be serialised again."""
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _environment() -> dict[str, str]:
    wanted = {
        "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64)),  # pyright: ignore[reportAttributeAccessIssue]
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # beside the parent, and so that the allocator's numbers are those of the program
        "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back to the system, and is seen again by the next run's measurement
    }
    if jax.default_backend() == "cpu":
        wanted["JAX_PLATFORMS"] = "cpu"
    return {**os.environ, **wanted}


def _reason(code: int, stderr: str) -> str:
    if code < 0:
        because = ", as a process is that needs more memory than there is" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{because}"
    return stderr.strip().splitlines()[-1] if stderr.strip() else f"ended with code {code}"
