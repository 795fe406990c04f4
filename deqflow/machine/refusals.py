"""What the machine refuses (memory, space on disk, permission, a device), told as a mistake that the user can mend."""

import contextlib
import os
from collections.abc import Iterator

import jax

from deqflow.registry import UserError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or XLA asked for more memory than there is."""
    return isinstance(error, MemoryError) or (isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


@contextlib.contextmanager
def refusals_told(doing: str, needs_less_memory: str) -> Iterator[None]:
    """Raise `UserError` for what the operating system refuses inside, and for memory that is not there.

    Args:
      doing: what cannot be done, with the place that it concerns: `"cannot write the run directory runs/a"`.
      needs_less_memory: what to change if memory is short.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output went away; nothing is refused
    except OSError as error:
        if error.errno is None:  # raised by a program, not by the system
            raise
        where = f": {error.filename}" if error.filename is not None else ""
        raise UserError(f"{doing}: {os.strerror(error.errno)}{where}") from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"there is not enough memory: {needs_less_memory} ({str(error).partition(chr(10))[0]})") from error


def require_device() -> None:
    """Raise `UserError` if JAX has no device to compute on, as when `JAX_PLATFORMS` names one that is not there."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS")
        remedy = f"; JAX_PLATFORMS is {wanted!r}: unset it, or install what that device needs, as `pip install 'deqflow[cuda]'` does"
        reason = f" ({error})" if str(error) else ""
        raise UserError(f"JAX finds no device to compute on{remedy if wanted else ''}{reason}") from error
