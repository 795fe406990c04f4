#!/usr/bin/env python
"""Prepare a data set of TensorFlow Datasets on disk, once, so that training reads it without TensorFlow.

    pip install '.[prepare]'                                         # TensorFlow, which encodes the images
    python scripts/prepare_tfds.py mnist                             # downloads the official files
    python scripts/prepare_tfds.py mnist --files ~/Downloads/mnist   # offline: takes the official files from a directory

Then `data: {kind: tfds, name: mnist}` in a config, without TensorFlow from here on. Files in `--files` go by their official names,
and TFDS checks their sums; what is not there is downloaded. `--data-dir` is the config's `data.data_dir`.
"""

import argparse
import difflib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Prepare a data set of TensorFlow Datasets on disk, as array_record.")
    parser.add_argument("name", help="mnist, fashion_mnist, cifar10, ...; name/config or name:version")
    place = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    parser.add_argument("--data-dir", default=place, help="where to put it (%(default)s)")
    parser.add_argument("--files", metavar="DIR", help="directory with the official files, under their official names")
    arguments = parser.parse_args()
    if arguments.files is not None and not Path(arguments.files).expanduser().is_dir():
        return _fail(f"--files: there is no directory {arguments.files}")
    missing = [
        name
        for name in ("tensorflow", "tensorflow_datasets", "importlib_resources", "array_record")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        return _fail(f"preparing a data set needs {' and '.join(missing)}: pip install '.[prepare]' in the checkout")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return prepare(arguments.name, Path(arguments.data_dir).expanduser(), arguments.files)


def prepare(name: str, data_dir: Path, files: str | None) -> int:
    """Prepare `name` in `data_dir`, from the official `files` if a directory is given."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=3)
        return _fail(f"TFDS knows no data set {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    except Exception as error:  # an unknown configuration or version, or the set is there in another format
        return _fail(f"{name} cannot be prepared in {data_dir}: {_reason(error)}")
    if builder.is_prepared():
        print(f"{name} is there already: {builder.data_path}")
        return 0
    wanted = sorted({info.filename for info in (builder.url_infos or {}).values() if info.filename})
    absent = [] if files is None else [file for file in wanted if not (Path(files).expanduser() / file).exists()]
    if wanted and absent == wanted:
        return _fail(f"{files} holds none of the official files of {name}: {', '.join(wanted[:8])}")
    try:
        with tempfile.TemporaryDirectory() as unpacked:
            # TFDS takes a file of the official name from `manual_dir` before it downloads anything.
            manual = None if files is None else Path(files).expanduser()
            config = tfds.download.DownloadConfig(manual_dir=manual, extract_dir=unpacked, try_download_gcs=False)
            builder.download_and_prepare(download_dir=data_dir / "downloads", download_config=config)
    except Exception as error:  # no network, no space, a wrong sum: TFDS says which
        hint = f" (not in {files}: {', '.join(absent[:8])})" if absent else ""
        return _fail(f"{name} could not be prepared: {_reason(error)}{hint}")
    sizes = ", ".join(f"{split} {info.num_examples}" for split, info in builder.info.splits.items())
    print(f"{name} is ready in {builder.data_path}: {sizes}")
    return 0


def _reason(error: Exception) -> str:
    """The message without the list of its own arguments that TFDS puts in front, and the list of others that it adds."""
    return str(error).rpartition('}": ')[2].partition(" Here are")[0].strip()


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
