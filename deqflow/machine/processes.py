"""Several processes that train one model together, each with its own devices: on one machine or on many."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from deqflow.registry import UserError


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Make this process one of several that compute together; to be called before JAX computes anything.

    Without arguments the cluster is asked: SLURM, Open MPI, Kubernetes and TPU pods tell a process who it is.

    Args:
      coordinator: address and port of process 0, which the others can reach: `"10.0.0.1:1234"`.
      processes: how many there are.
      process: which of them this one is, from 0.

    Raises:
      UserError: if only some of the arguments are given, no cluster tells them, or the others do not come.
    """
    given = (coordinator, processes, process)
    if None in given and given != (None, None, None):
        raise UserError(f"--coordinator, --processes and --process belong together; got {coordinator}, {processes} and {process}")
    if process is not None and processes is not None and not 0 <= process < processes:
        raise UserError(f"--process must be one of 0 .. {processes - 1}, the number of --processes less one, got {process}")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator must be an address with a port, such as 10.0.0.1:1234, got {coordinator}")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which the trainer answers itself
    try:
        # One who is told all is not to look for a cluster besides; the devices are then all that the process sees.
        method = None if coordinator is None else "deactivate"
        jax.distributed.initialize(coordinator, processes, process, cluster_detection_method=method)
    except ValueError as error:
        raise UserError(f"no cluster tells which process this is ({error}); give --coordinator, --processes and --process") from error
    except RuntimeError as error:
        where = "" if coordinator is None else f" at {coordinator}"
        raise UserError(f"the processes did not find each other{where} ({str(error).partition(chr(10))[0]})") from error


def is_first() -> bool:
    """Whether this is process 0, the one that writes and prints."""
    return jax.process_index() == 0


def largest(number: int) -> int:
    """The largest of the numbers that the processes call this with, all at the same point."""
    return number if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int32(number)).max())


def wait_for_all(name: str) -> None:
    """Return once all processes have come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def place_to_write(path: Path) -> Iterator[Path]:
    """`path` in process 0; a folder that is dropped again in the others, which compute the same numbers and need not keep them."""
    if is_first():
        yield path
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
