"""`scripts/prepare_tfds.py`: what a user meets without TensorFlow, and, where it is installed, MNIST from its official files."""

import gzip
import importlib.util
import pathlib
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest

from deqflow.data.tfds import TFDS

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "prepare_tfds.py"
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = pytest.mark.skipif(not HAS_TENSORFLOW, reason="needs TensorFlow: pip install 'deqflow[prepare]'")


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed")
def test_without_tensorflow_one_sentence_says_what_to_install(tmp_path):
    ended = run("mnist", "--data-dir", tmp_path / "sets")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: preparing a data set needs tensorflow: pip install '.[prepare]' in the checkout\n"
    assert not (tmp_path / "sets").exists()


def test_the_extra_that_it_names_brings_all_it_needs():
    """TFDS imports `importlib_resources` without declaring it."""
    extras = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {re.split("[><=;]", requirement)[0].replace("-", "_") for requirement in extras["prepare"]}
    assert named == {"array_record", "importlib_resources", "tensorflow", "tensorflow_datasets"}


def test_a_missing_directory_of_files_is_told(tmp_path):
    ended = run("mnist", "--files", tmp_path / "nowhere")
    assert (ended.returncode, ended.stderr) == (2, f"error: --files: there is no directory {tmp_path / 'nowhere'}\n")


@needs_tensorflow
def test_mistakes_end_in_one_message(tmp_path):
    assert "TFDS knows no data set 'mnits'; did you mean mnist" in run("mnits", "--data-dir", tmp_path).stderr
    (tmp_path / "files").mkdir()
    ended = run("mnist", "--data-dir", tmp_path / "sets", "--files", tmp_path / "files")
    assert ended.returncode == 2
    assert "holds none of the official files of mnist: t10k-images-idx3-ubyte.gz," in ended.stderr


@needs_tensorflow
def test_mnist_from_its_official_files(tmp_path, shared_data):
    files = shared_data / "mnist"
    assert "mnist is ready" in run("mnist", "--data-dir", tmp_path, "--files", files).stdout
    assert "is there already" in run("mnist", "--data-dir", tmp_path, "--files", files).stdout
    records = TFDS(name="mnist", data_dir=str(tmp_path)).split("test")
    batch = records.gather(np.arange(len(records)))
    official = np.frombuffer(gzip.decompress((files / "t10k-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8).reshape(10000, -1)
    assert {image.tobytes() for image in batch["x"]} == {image.tobytes() for image in official}
    assert np.bincount(batch["y"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
