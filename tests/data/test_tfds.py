"""Data sets of TFDS, read back from disk through the code that a user's `mnist` goes through."""

import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest

from deqflow.data import eval_batches, train_batches
from deqflow.data.tfds import TFDS
from deqflow.registry import UserError


def everything(records):
    return records.gather(np.arange(len(records)))


def image_of(number):
    return ((np.arange(28 * 28) + number) % 256).astype(np.uint8).reshape(28, 28, 1)


@pytest.fixture
def source(tfds_dir):
    def make(name, **arguments):
        return TFDS(name=name, data_dir=str(tfds_dir), **arguments)

    return make


@pytest.fixture
def copy(tfds_dir, tmp_path):
    """A directory whose sets a test may damage."""
    shutil.copytree(tfds_dir, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_mnist_is_promised_and_delivered(source):
    mnist = source("mnist")
    spec = mnist.spec()
    assert (spec.input_shape, spec.dtype, spec.classes, spec.levels) == ((28, 28, 1), "uint8", 10, 256)
    assert spec.class_names == tuple("0123456789")
    parts = {name: mnist.split(name) for name in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 54, "validation": 6, "test": 20}
    data = {name: everything(part) for name, part in parts.items()}
    for part in data.values():
        numbers = part["x"][:, 0, 0, 0]  # the first pixel tells which example it is
        assert np.array_equal(part["x"], np.stack([image_of(number) for number in numbers]))
        assert np.array_equal(part["y"], numbers % 10)
        assert part["y"].dtype == np.int32
    numbers = np.concatenate([data["train"]["x"], data["validation"]["x"]])[:, 0, 0, 0]
    assert np.array_equal(np.sort(numbers), np.arange(60))


def test_batches_from_disk(source):
    records = source("mnist").split("train")
    batches = train_batches(records, batch_size=18, seed=0)
    epoch = [next(batches) for _ in range(3)]
    batches.close()
    assert np.array_equal(
        np.sort(np.concatenate([batch["x"][:, 0, 0, 0] for batch in epoch])), np.sort(everything(records)["x"][:, 0, 0, 0])
    )
    kept = train_batches(source("mnist", in_memory=True).split("train"), batch_size=18, seed=0, start=1)
    assert np.array_equal(next(kept)["x"], epoch[1]["x"])
    evaluated = list(eval_batches(records, batch_size=20))
    assert np.array_equal(np.concatenate([batch["x"] for batch in evaluated])[:54], everything(records)["x"])
    assert np.concatenate([batch["mask"] for batch in evaluated]).sum() == 54


@pytest.mark.parametrize("in_memory", [False, True])
def test_in_memory_changes_nothing_but_the_access(source, in_memory):
    records = source("mnist", in_memory=in_memory).split("validation")
    assert records.access == ("memory" if in_memory else "records")
    assert np.array_equal(everything(records)["x"], everything(source("mnist").split("validation"))["x"])


def test_splits_may_be_named_in_the_words_of_tfds(source):
    mnist = source("mnist", train="train[:50]", validation="train[50:]", test="test[:5]")
    assert [len(mnist.split(name)) for name in ("train", "validation", "test")] == [50, 10, 5]
    assert not set(everything(mnist.split("train"))["x"][:, 0, 0, 0]) & set(everything(mnist.split("validation"))["x"][:, 0, 0, 0])


def test_a_set_that_tfds_has_no_code_for(source):
    things = source("things", image_key="grey")
    spec = things.spec()
    assert (spec.input_shape, spec.dtype, spec.classes, spec.class_names) == ((4, 5, 1), "uint8", 2, ("round", "flat"))
    assert [len(things.split(name)) for name in ("train", "validation", "test")] == [36, 8, 4]
    batch = everything(things.split("validation"))
    assert np.array_equal(batch["x"][:, 3, 4, 0] % 2, batch["y"])


def test_real_numbers(source):
    things = source("things", image_key="point")
    assert (things.spec().dtype, things.spec().levels) == ("float32", None)
    x = everything(things.split("train"))["x"]
    assert x.dtype == np.float32
    assert np.array_equal(x[:, 0], -x[:, 2])


def test_the_specification_needs_no_prepared_data(source):
    assert source("cifar10").spec().input_shape == (32, 32, 3)


REFUSED = {
    "misspelt": ("mnits", {}, r"unknown data set 'mnits'; did you mean 'mnist'\?"),
    "misspelt, of the user": ("thingz", {}, r"unknown data set 'thingz'; did you mean 'things'\?"),
    "not prepared": ("cifar10", {}, r"'cifar10' is not prepared in .*: run python scripts/prepare_tfds.py cifar10 --data-dir /"),
    "configuration": ("mnist/small", {}, "'mnist/small' in .* cannot be opened: BuilderConfig small not found"),
    "version": ("mnist:9.9.9", {}, "cannot be loaded at version 9.9.9, only: 3.0.1"),
    "split": ("mnist", {"train": "training"}, "split 'training' of mnist .*; splits: train, test"),
    "empty split": ("mnist", {"train": "train[:0]"}, r"split 'train\[:0\]' of mnist .* is empty"),
    "image key": ("mnist", {"image_key": "imag"}, r"image_key: mnist has no feature 'imag'; did you mean 'image'\?; it has: image, label"),
    "label key": ("mnist", {"label_key": "image"}, "'image' of mnist is no class label; class labels: label"),
    "no image": ("things", {}, "image_key: say which feature of things is the input; it has: .*grey"),
    "sizes differ": ("things", {"image_key": "any_size"}, r"shape \(None, 2\): sizes differ"),
    "large integers": ("things", {"image_key": "count"}, "the input must be an array of 8-bit or real numbers"),
    "text": ("things", {"image_key": "name"}, "the input must be an array of 8-bit or real numbers"),
    "nan": ("broken", {"image_key": "point"}, r"split 'train' of broken: point must be finite numbers, but example \d+ holds NaN"),
    "no label": ("broken", {"image_key": "point", "train": "test"}, r"example \d+ has no label \(label = -1\)"),
}


@pytest.mark.parametrize("name, arguments, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused(source, name, arguments, message):
    with pytest.raises(UserError, match=message):
        everything(source(name, **arguments).split("train"))


def test_another_format_is_refused(copy):
    description = copy / "mnist" / "3.0.1" / "dataset_info.json"
    content = json.loads(description.read_text())
    assert content["fileFormat"] == "array_record"
    description.write_text(json.dumps(content | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="holds tfrecord, which cannot be read .* without TensorFlow: run python scripts/prepare_tfds.py"):
        TFDS(name="mnist", data_dir=str(copy)).split("train")


@pytest.mark.parametrize("keep", [0, 1000])
def test_a_truncated_file_is_told(copy, keep):
    file = next((copy / "mnist" / "3.0.1").glob("mnist-train*"))
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="split 'train' of mnist"):
        everything(TFDS(name="mnist", data_dir=str(copy)).split("train"))


def test_a_missing_file_is_told(copy):
    next((copy / "mnist" / "3.0.1").glob("mnist-train*")).unlink()
    with pytest.raises(UserError, match="split 'train' of mnist"):
        everything(TFDS(name="mnist", data_dir=str(copy)).split("train"))


def test_damaged_metadata_are_told(copy):
    (copy / "mnist" / "3.0.1" / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="data set 'mnist' in .* cannot be opened"):
        TFDS(name="mnist", data_dir=str(copy)).split("train")


def test_the_directory_is_found(tfds_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    assert len(TFDS(name="mnist").split("test")) == 20
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"not prepared in {tmp_path}/tensorflow_datasets"):
        TFDS(name="mnist").split("test")
    shutil.copytree(tfds_dir, tmp_path / "tensorflow_datasets")
    assert len(TFDS(name="mnist").split("test")) == 20
    assert len(TFDS(name="mnist", data_dir="~/tensorflow_datasets").split("test")) == 20


def test_advice_to_install_opencv_is_dropped_and_nothing_else(source, caplog):
    source("mnist").spec()
    with caplog.at_level(logging.WARNING, logger="absl"):
        logging.getLogger("absl").warning("OpenCV is not installed. We recommend using OpenCV")
        logging.getLogger("absl").warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


WITHOUT_TENSORFLOW = """
import importlib.abc, importlib.machinery, sys

class Blocked(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            return importlib.machinery.ModuleSpec(name, self)  # there to be found, as TFDS looks for it, but not to be imported
    def create_module(self, spec):
        raise ImportError("TensorFlow is blocked")
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Blocked())
from deqflow.data import eval_batches, train_batches
from deqflow.registry import resolve

source = resolve("data", "tfds")(name="mnist", data_dir=sys.argv[1])
print(source.spec().input_shape)
batches = train_batches(source.split("train"), batch_size=54, seed=0)
batch = next(batches)
batches.close()
print(batch["x"].shape, sorted(set(batch["y"].tolist())))
print(sum(int(batch["mask"].sum()) for batch in eval_batches(source.split("test"), batch_size=8)))
assert "tensorflow" not in sys.modules
"""


def test_reading_needs_no_tensorflow_and_is_silent(tfds_dir):
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TENSORFLOW, str(tfds_dir)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "(28, 28, 1)\n(54, 28, 28, 1) [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n20\n"
