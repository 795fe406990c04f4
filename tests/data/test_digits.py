"""scikit-learn's handwritten digits, against scikit-learn."""

import numpy as np
from sklearn.datasets import load_digits

from deqflow.data.digits import Digits

SIZES = {"train": 1257, "validation": 180, "test": 360}


def everything(split):
    records = Digits().split(split)
    return records.gather(np.arange(len(records)))


def test_what_is_promised_is_delivered():
    spec = Digits().spec()
    for split, size in SIZES.items():
        data = everything(split)
        assert data["x"].shape == (size, *spec.input_shape)
        assert (data["x"].dtype.name, data["y"].dtype.name) == (spec.dtype, "int32")
        assert (data["x"].min(), data["x"].max()) == (0, spec.levels - 1)
        assert set(data["y"]) == set(range(spec.classes))
        assert len(spec.class_names) == spec.classes


def test_the_splits_are_the_documented_permutation():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    parts = [everything(split) for split in SIZES]
    assert np.array_equal(np.concatenate([part["x"] for part in parts]).reshape(1797, 64), images[order])
    assert np.array_equal(np.concatenate([part["y"] for part in parts]), labels[order])


def test_every_split_has_its_share_of_every_class():
    for split, size in SIZES.items():
        counts = np.bincount(everything(split)["y"], minlength=10)
        assert abs(counts / size - 0.1).max() < 0.04, (split, counts)
