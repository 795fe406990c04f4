"""Arrays in files: every format and type, plain and gzipped; damage of every kind ends in one message."""

import gzip
import io
import os
import struct

import numpy as np
import pytest

from deqflow.data.files import array_names, read_array, read_header
from deqflow.registry import UserError

IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array):
    code = IDX_CODES[array.dtype.str[1:]]
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, code, array.ndim, *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


FORMATS = {"idx": idx, "npy": npy, "npz": lambda array: npz(anything=array)}
PACKINGS = {"plain": lambda content: content, "gzip": gzip.compress}


@pytest.fixture
def write(tmp_path):
    def to_file(content, name="file"):
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return to_file


@pytest.mark.parametrize("pack", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize("encode", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", IDX_CODES)
def test_reads_what_was_written(write, encode, pack, dtype):
    array = np.arange(24).reshape(4, 3, 2).astype(dtype)
    path = write(pack(encode(array)))
    header = read_header(path)
    assert (header.shape, header.dtype.newbyteorder("=")) == (array.shape, array.dtype)
    assert np.array_equal(read_array(path), array)
    assert isinstance(read_array(path), np.memmap) == (pack is PACKINGS["plain"] and encode is not FORMATS["npz"])


@pytest.mark.parametrize("encode", FORMATS.values(), ids=FORMATS)
def test_an_empty_array_is_read_as_such(write, encode):
    path = write(encode(np.zeros((0, 5), np.uint8)))
    assert read_header(path).shape == (0, 5)


def test_npz_arrays_have_names(write):
    path = write(npz(images=np.zeros((2, 3)), labels=np.arange(2)), "data.npz")
    assert array_names(path) == ["images", "labels"]
    assert array_names(write(idx(np.zeros(3, "u1")))) == []
    assert read_array(path, "labels").tolist() == [0, 1]
    with pytest.raises(UserError, match=r"no array 'image'; did you mean 'images'\?; it holds: images, labels"):
        read_header(path, "image")
    with pytest.raises(UserError, match=r"several arrays \(images, labels\): name one, as in .*data.npz:images"):
        read_header(path)


def cut(content, count=7):
    return content[:-count]


WHOLE = np.arange(3000, dtype="u1").reshape(30, 100)
DAMAGED = {
    "idx cut": (cut(idx(WHOLE)), "announces 3000 bytes of values and 2993 follow"),
    "idx too long": (idx(WHOLE) + b"more", "announces 3000 bytes of values and 3004 follow"),
    "idx header cut": (idx(WHOLE)[:9], "announces 2 axes and ends after 1"),
    "idx gzip cut": (cut(gzip.compress(idx(WHOLE)), 20), "damaged or incomplete"),
    "idx gzip cut inside": (gzip.compress(cut(idx(WHOLE))), "announces 3000 bytes of values and 2993 follow"),
    "npy cut": (cut(npy(WHOLE)), "damaged or incomplete"),
    "npy gzip cut": (gzip.compress(cut(npy(WHOLE))), "damaged or incomplete"),
    "npy header cut": (npy(WHOLE)[:20], "damaged or incomplete"),
    "npz cut": (cut(npz(x=WHOLE)), "damaged or incomplete"),
    "objects": (npy(np.array([{}, None])), "Python objects, expected numbers"),
    "text": (b"label,pixel\n1,2\n", "not an .npy, .npz or IDX file, gzipped or not: it starts with b'label,'"),
    "no bytes": (b"", "not an .npy, .npz or IDX file, gzipped or not: it is empty"),
    "unknown idx type": (b"\0\0\x07\1\0\0\0\0", "not an .npy, .npz or IDX file"),
}


@pytest.mark.parametrize("content, message", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_told(write, content, message):
    path = write(content)
    with pytest.raises(UserError, match=message) as caught:
        read_header(path)
        read_array(path)
    assert str(caught.value).startswith(path)


def test_a_flipped_bit_in_a_gzipped_file_is_found(write):
    content = bytearray(gzip.compress(idx(WHOLE)))
    content[len(content) // 2] ^= 0x10
    with pytest.raises(UserError, match="damaged or incomplete"):
        read_array(write(bytes(content)))


def test_what_cannot_be_opened_is_told(write, tmp_path):
    write(idx(WHOLE), "train-images")
    with pytest.raises(UserError, match=r"train-image: no such file; did you mean 'train-images'\?"):
        read_header(str(tmp_path / "train-image"))
    with pytest.raises(UserError, match="no such file .*there is no directory"):
        read_header(str(tmp_path / "missing" / "train-images"))
    with pytest.raises(UserError, match="is a directory; expected"):
        read_header(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_no_permission_is_told(write, tmp_path):
    path = write(idx(WHOLE))
    os.chmod(path, 0)
    with pytest.raises(UserError, match="no permission to read"):
        read_header(path)


def test_no_permission_is_told_whoever_asks(monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match="secret: no permission to read this file"):
        read_header("secret")


def test_home_is_understood(write, monkeypatch, tmp_path):
    write(idx(WHOLE), "file")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert np.array_equal(read_array("~/file"), WHOLE)
