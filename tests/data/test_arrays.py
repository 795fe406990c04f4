"""The `arrays` source: what its specification promises is what its splits deliver, and what cannot be used is refused."""

import numpy as np
import pytest

from deqflow.data.arrays import Arrays
from deqflow.data.source import Subset
from deqflow.registry import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 6, 5)).astype("u1")
LABELS = (np.arange(40) % 4).astype("u1")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(here, **arrays):
    for name, array in arrays.items():
        np.save(here / f"{name}.npy", array)
    return {name: f"{name}.npy" for name in arrays}


def everything(records):
    return records.gather(np.arange(len(records)))


def test_images_with_labels(here):
    source = Arrays(**save(here, train=IMAGES, train_labels=LABELS, test=IMAGES[:7], test_labels=LABELS[:7]))
    spec = source.spec()
    assert (spec.input_shape, spec.dtype, spec.levels, spec.classes) == ((6, 5, 1), "uint8", 256, 4)
    train, validation, test = (source.split(name) for name in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (36, 4, 7)
    assert np.array_equal(np.sort(np.concatenate([train.chosen, validation.chosen])), np.arange(40))
    batch = everything(validation)
    assert np.array_equal(batch["x"], IMAGES[validation.chosen, ..., None])
    assert np.array_equal(batch["y"], LABELS[validation.chosen])
    assert (batch["x"].dtype.name, batch["y"].dtype.name) == ("uint8", "int32")
    assert np.array_equal(everything(test)["x"], IMAGES[:7, ..., None])


def test_files_in_a_folder(here):
    (here / "deep").mkdir()
    np.savez(here / "deep" / "all.npz", x=IMAGES, y=LABELS)
    save(here, test=IMAGES[:7], test_labels=LABELS[:7])
    outside = {name: str(here / f"{name}.npy") for name in ("test", "test_labels")}
    source = Arrays(folder="deep", train="all.npz:x", train_labels="all.npz:y", **outside)
    assert len(source.split("train")) == 36
    assert np.array_equal(everything(source.split("test"))["x"], IMAGES[:7, ..., None])


def test_points_without_labels(here):
    points = RNG.normal(size=(50, 3))
    source = Arrays(**save(here, train=points))
    spec = source.spec()
    assert (spec.input_shape, spec.dtype, spec.levels, spec.classes) == ((3,), "float32", None, None)
    parts = {name: source.split(name) for name in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 40, "validation": 5, "test": 5}
    together = np.concatenate([everything(part)["x"] for part in parts.values()])
    assert np.array_equal(np.sort(together, axis=0), np.sort(points.astype("f4"), axis=0))
    assert set(everything(parts["train"])) == {"x"}


def test_one_npz_with_all_splits(here):
    np.savez(here / "all.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:3], y_test=LABELS[:3])
    source = Arrays(
        train="all.npz:x_train",
        train_labels="all.npz:y_train",
        test="all.npz:x_test",
        test_labels="all.npz:y_test",
        validation_fraction=0.5,
    )
    assert source.spec().classes == 4
    assert [len(source.split(name)) for name in ("train", "validation", "test")] == [20, 20, 3]


def test_an_npz_for_each_split(here):
    for name in ("train", "validation", "test"):
        np.savez(here / f"{name}.npz", x=IMAGES, y=LABELS)
    source = Arrays(train="train.npz", validation="validation.npz", test="test.npz")
    assert source.spec().classes == 4
    assert all(np.array_equal(everything(source.split(name))["y"], LABELS) for name in ("train", "validation", "test"))


def test_an_npz_with_inputs_alone(here):
    np.savez(here / "train.npz", x=IMAGES)
    assert Arrays(train="train.npz").spec().classes is None


@pytest.mark.parametrize(
    "array, levels, expected",
    [
        (IMAGES // 64, 4, 4),
        (IMAGES.astype("i8") // 64, 4, 4),
        (IMAGES > 99, None, 2),
        (IMAGES[..., None], None, 256),
        (np.repeat(IMAGES[..., None], 3, axis=-1), None, 256),
    ],
    ids=["uint8", "int64", "bool", "one channel", "colour"],
)
def test_levels_of_integers(here, array, levels, expected):
    source = Arrays(**save(here, train=array), levels=levels)
    channels = array.shape[3] if array.ndim == 4 else 1
    assert (source.spec().input_shape, source.spec().levels) == ((6, 5, channels), expected)
    batch = everything(source.split("train"))["x"]
    assert (batch.dtype.name, batch.max()) == ("uint8", expected - 1)


def test_the_specification_reads_no_input(here, monkeypatch):
    files = save(here, train=IMAGES, train_labels=LABELS)
    content = (here / "train.npy").read_bytes()
    (here / "train.npy").write_bytes(content[:150])  # the header, and almost nothing else
    assert Arrays(**files).spec().input_shape == (6, 5, 1)
    (here / "train_labels.npy").unlink()
    assert Arrays(**files, classes=10).spec().classes == 10


def test_a_mapped_file_stays_on_disk(here):
    files = save(here, train=IMAGES, test=IMAGES)
    train = Arrays(**files).split("train")
    assert isinstance(train, Subset)
    assert train.access == "mapped"
    assert type(train.gather(np.arange(3))["x"]) is np.ndarray


def with_value(array, value, index):
    changed = np.array(array)
    changed[index] = value
    return changed


POINTS = RNG.normal(size=(40, 3))
REFUSED = {
    "nan": ({"train": with_value(POINTS, np.nan, (17, 1))}, {}, r"x of train.npy .* example 17 holds NaN or infinity"),
    "too large for float32": ({"train": with_value(POINTS, 1e300, (3, 0))}, {}, "example 3 holds NaN or infinity"),
    "nan in test": ({"train": POINTS, "test": with_value(POINTS, np.inf, (5, 0))}, {}, "x of test.npy .* example 5"),
    "empty": ({"train": POINTS[:0]}, {}, r"train.npy is empty: its shape is \(0, 3\)"),
    "empty test": ({"train": POINTS, "test": POINTS[:0]}, {}, "test.npy is empty"),
    "fewer labels": ({"train": IMAGES, "train_labels": LABELS[1:]}, {}, r"\{'x': 40, 'y': 39\}"),
    "numbers alone": ({"train": POINTS[:, 0]}, {}, r"shape \(40,\), expected one example per row"),
    "text": ({"train": np.array([["a"], ["b"]])}, {}, "expected integers or real numbers"),
    "complex": ({"train": POINTS + 1j}, {}, "holds complex128, expected integers or real numbers"),
    "levels missing": ({"train": IMAGES.astype("i4")}, {}, "holds int32: say with levels"),
    "levels too few": ({"train": IMAGES}, {"levels": 200}, r"train.npy must lie in 0 .. 199 \(levels = 200\), but range over 0 .. 255"),
    "levels too many": ({"train": IMAGES.astype("i4")}, {"levels": 1000}, "levels must be at most 256, got 1000"),
    "levels of reals": ({"train": POINTS}, {"levels": 256}, "levels is for integer inputs, but train.npy holds float64"),
    "negative pixels": ({"train": IMAGES.astype("i4") - 1}, {"levels": 256}, "range over -1 .. 254"),
    "real labels": ({"train": IMAGES, "train_labels": LABELS + 0.0}, {}, r"float64 of shape \(40,\), expected integers"),
    "one-hot labels": ({"train": IMAGES, "train_labels": np.eye(4, dtype=int)[LABELS]}, {}, r"int64 of shape \(40, 4\), expected integers"),
    "negative label": ({"train": IMAGES, "train_labels": with_value(LABELS.astype(int), -1, 9)}, {}, "example 9 has -1"),
    "labels beyond classes": (
        {"train": IMAGES, "train_labels": LABELS},
        {"classes": 3},
        r"labels of train_labels.npy must lie in 0 .. 2 \(classes = 3\), but range over 0 .. 3",
    ),
    "new class in test": (
        {"train": IMAGES, "train_labels": LABELS, "test": IMAGES[:2], "test_labels": LABELS[:2] + 4},
        {},
        r"labels of test_labels.npy must lie in 0 .. 3",
    ),
    "test without labels": ({"train": IMAGES, "train_labels": LABELS, "test": IMAGES}, {}, "test.npy: train has labels and test has none"),
    "test with labels": ({"train": IMAGES, "test": IMAGES, "test_labels": LABELS}, {}, "test has labels and train has none"),
    "labels alone": ({"train": IMAGES, "test_labels": LABELS}, {}, "test_labels is given without test"),
    "shapes differ": (
        {"train": IMAGES, "test": IMAGES[:, 1:]},
        {},
        r"uint8 of shape \(5, 5, 1\), those of train uint8 of shape \(6, 5, 1\)",
    ),
    "types differ": ({"train": IMAGES, "test": IMAGES / 255}, {}, r"test are float32 of shape .*, those of train uint8"),
    "too few": ({"train": POINTS[:4]}, {}, "every split needs one at least"),
}


@pytest.mark.parametrize("arrays, options, message", REFUSED.values(), ids=REFUSED)
def test_unusable_data_are_refused(here, arrays, options, message):
    with pytest.raises(UserError, match=message):
        source = Arrays(**save(here, **arrays), **options)
        for name in ("train", "validation", "test"):
            source.split(name)


def test_a_missing_file_is_told(here):
    save(here, train=IMAGES)
    with pytest.raises(UserError, match=r"trian.npy: no such file; did you mean 'train.npy'\?"):
        Arrays(train="trian.npy").spec()


def test_official_mnist(shared_data):
    folder = shared_data / "mnist"
    source = Arrays(
        train=str(folder / "train-images-idx3-ubyte.gz"),
        train_labels=str(folder / "train-labels-idx1-ubyte.gz"),
        test=str(folder / "t10k-images-idx3-ubyte.gz"),
        test_labels=str(folder / "t10k-labels-idx1-ubyte.gz"),
    )
    spec = source.spec()
    assert (spec.input_shape, spec.dtype, spec.classes, spec.levels) == ((28, 28, 1), "uint8", 10, 256)
    train, validation, test = (everything(source.split(name)) for name in ("train", "validation", "test"))
    assert [len(part["x"]) for part in (train, validation, test)] == [54000, 6000, 10000]
    pixels = np.concatenate([train["x"], validation["x"]])
    mean, square = pixels.mean() / 255, np.square(pixels, dtype=np.uint16).mean() / 255**2
    assert (mean, np.sqrt(square - mean**2)) == pytest.approx((0.13066, 0.30811), abs=1e-5)
    counts = np.bincount(np.concatenate([train["y"], validation["y"]]))
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test["y"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
