"""Data sets of TFDS, prepared on disk in `array_record` without TensorFlow."""

import io

import numpy as np
import pytest

MNIST_SIZES = {"train": 60, "test": 20}


def mnist_image(number):
    """An image that tells which example it is."""
    return ((np.arange(28 * 28) + number) % 256).astype(np.uint8).reshape(28, 28, 1)


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    """A directory with a small `mnist`, which TFDS's own builder reads, and sets that TFDS has no code for: `things` and `broken`."""
    import PIL.Image
    import tensorflow_datasets as tfds

    features = tfds.features
    tfds.disable_progress_bar()

    def png(image):
        stream = io.BytesIO()
        PIL.Image.fromarray(image[..., 0]).save(stream, "png")
        stream.seek(0)
        return stream

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        def _split_generators(self, _):
            return {split: self._generate_examples(split, size) for split, size in self.sizes.items()}

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(self.columns()), supervised_keys=self.keys)

        def _generate_examples(self, split, size):
            for number in range(size):
                yield number, self.example(number if split == "train" else 100 + number)

    class Mnist(Small, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")
        sizes, keys = MNIST_SIZES, ("image", "label")

        def columns(self):
            return {"image": features.Image(shape=(28, 28, 1)), "label": features.ClassLabel(num_classes=10)}

        def example(self, number):
            return {"image": png(mnist_image(number)), "label": number % 10}

    class Things(Small, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        sizes, keys = {"train": 40, "validation": 8}, None

        def columns(self):
            return {
                "grey": features.Tensor(shape=(4, 5), dtype=np.uint8),
                "point": features.Tensor(shape=(3,), dtype=np.float64),
                "any_size": features.Tensor(shape=(None, 2), dtype=np.float32),
                "count": features.Tensor(shape=(2,), dtype=np.int32),
                "name": features.Text(),
                "shape": features.ClassLabel(names=["round", "flat"]),
            }

        def example(self, number):
            return {
                "grey": np.full((4, 5), number, np.uint8),
                "point": np.array([number, 0.0, -number]),
                "any_size": np.zeros((number % 3, 2), np.float32),
                "count": np.array([number, 1], np.int32),
                "name": str(number),
                "shape": number % 2,
            }

    class Broken(Small, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        sizes, keys = {"train": 20, "test": 20}, None

        def columns(self):
            return {"point": features.Tensor(shape=(2,), dtype=np.float32), "label": features.ClassLabel(num_classes=3)}

        def example(self, number):
            return {"point": np.array([np.nan if number == 7 else 1.0, 0.0], np.float32), "label": -1 if number == 113 else 0}

    directory = tmp_path_factory.mktemp("tfds")
    for builder in (Mnist, Things, Broken):
        builder(data_dir=directory, file_format="array_record").download_and_prepare()
    return directory
