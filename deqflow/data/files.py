"""Arrays in files: NumPy's `.npy` and `.npz`, and IDX (the format of MNIST), each also gzipped.

The format is read from a file's first bytes, not from its name: the official MNIST files have no usual ending.
"""

import contextlib
import dataclasses
import difflib
import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from deqflow.registry import UserError, suggest

# The IDX format: two zero bytes, a byte for the type, a byte for the number of axes, each axis as a big-endian int32, then the values.
# http://yann.lecun.com/exdb/mnist
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
Stream = Any  # a binary file: plain, gzipped and archived ones have no type in common that both a reader and a checker accept
_DAMAGE = (EOFError, ValueError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class Header:
    """Shape and type of an array, read without its values."""

    shape: tuple[int, ...]
    dtype: np.dtype


def read_header(path: str, name: str | None = None) -> Header:
    """Shape and type of the array in a file.

    Args:
      path: an `.npy`, `.npz` or IDX file, gzipped or not.
      name: which array of an `.npz` file.

    Raises:
      UserError: if the file is missing, unreadable, damaged or of another format, or holds no such array.
    """
    with _opened(path) as (kind, stream):
        if kind == "npz":
            with zipfile.ZipFile(stream) as archive, archive.open(_member(archive, path, name)) as member:
                return _npy_header(member)
        if kind == "npy":
            return _npy_header(stream)
        return _idx_header(stream)


def read_array(path: str, name: str | None = None) -> Shaped[np.ndarray, "..."]:
    """The array in a file; uncompressed `.npy` and IDX files are mapped into memory instead of read.

    Args:
      path: an `.npy`, `.npz` or IDX file, gzipped or not.
      name: which array of an `.npz` file.

    Raises:
      UserError: if the file is missing, unreadable, damaged or of another format, or holds no such array.
    """
    with _opened(path) as (kind, stream):
        if kind == "npz":
            with zipfile.ZipFile(stream) as archive, archive.open(_member(archive, path, name)) as member:
                return np.lib.format.read_array(member, allow_pickle=False)
        zipped = isinstance(stream, gzip.GzipFile)
        if kind == "npy":
            return np.lib.format.read_array(stream, allow_pickle=False) if zipped else np.load(_expand(path), mmap_mode="r")
        header = _idx_header(stream)
        offset, size = 4 + 4 * len(header.shape), math.prod(header.shape) * header.dtype.itemsize
        if zipped:
            values = stream.read()
            _check_length(len(values), size)
            return np.frombuffer(values, header.dtype).reshape(header.shape)
        _check_length(os.fstat(stream.fileno()).st_size - offset, size)
        if size == 0:  # an empty file cannot be mapped
            return np.empty(header.shape, header.dtype)
        return np.memmap(_expand(path), header.dtype, "r", offset, header.shape)


def array_names(path: str) -> list[str]:
    """Names of the arrays of an `.npz` file; none for another format.

    Raises:
      UserError: if the file is missing, unreadable, damaged or of another format.
    """
    with _opened(path) as (kind, stream):
        if kind != "npz":
            return []
        with zipfile.ZipFile(stream) as archive:
            return _names(archive)


def _expand(path: str) -> Path:
    return Path(path).expanduser()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[str, Stream]]:
    """The file's format and its content, unzipped, with every failure turned into a message about this file."""
    place = _expand(path)
    try:
        with contextlib.ExitStack() as stack:
            stream: Stream = stack.enter_context(open(place, "rb"))
            if _peek(stream, 2) == b"\x1f\x8b":
                stream = stack.enter_context(gzip.open(stream, "rb"))
            yield _kind(_peek(stream, 6), path), stream
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file{nearby(place)}") from error
    except PermissionError as error:
        raise UserError(f"{path}: no permission to read this file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a directory; expected an .npy, .npz or IDX file") from error
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged or incomplete ({error}); fetch or write it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _peek(stream: Stream, count: int) -> bytes:
    """The first bytes, left unread."""
    start = stream.read(count)
    stream.seek(0)
    return start


def _kind(start: bytes, path: str) -> str:
    """The format that a file's first bytes announce."""
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "npz"
    if len(start) >= 4 and start[:2] == b"\0\0" and start[2] in _IDX_TYPES and start[3] > 0:
        return "idx"
    found = f"it starts with {start!r}" if start else "it is empty"
    raise UserError(f"{path} is not an .npy, .npz or IDX file, gzipped or not: {found}")


def nearby(place: Path) -> str:
    """A file of nearly that name in the same place, or the folder that is missing, as a hint."""
    if not place.parent.is_dir():
        return f" (there is no directory {place.parent})"
    near = difflib.get_close_matches(place.name, os.listdir(place.parent), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _names(archive: zipfile.ZipFile) -> list[str]:
    """Names of the arrays in an archive."""
    return [name.removesuffix(".npy") for name in archive.namelist()]


def _member(archive: zipfile.ZipFile, path: str, name: str | None) -> str:
    """The archive's file that holds the array `name`, or its only array."""
    names = _names(archive)
    if name is None and len(names) == 1:
        name = names[0]
    if name is None:
        raise UserError(f"{path} holds several arrays ({', '.join(names)}): name one, as in {path}:{names[0] if names else 'x'}")
    if name not in names:
        raise UserError(f"{path} holds no array {name!r}{suggest(name, names)}; it holds: {', '.join(names)}")
    return name if name in archive.namelist() else f"{name}.npy"


def _npy_header(stream: Stream) -> Header:
    """Shape and type from an .npy file's header."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format is not supported")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, expected numbers")
    return Header(tuple(shape), dtype)


def _idx_header(stream: Stream) -> Header:
    """Shape and type from an IDX file's header."""
    _, _, code, axes = stream.read(4)
    sizes = stream.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise ValueError(f"its header announces {axes} axes and ends after {len(sizes) // 4}")
    return Header(tuple(np.frombuffer(sizes, ">i4").tolist()), np.dtype(_IDX_TYPES[code]))


def _check_length(found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"its header announces {expected} bytes of values and {found} follow")
