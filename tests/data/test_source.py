"""What every source has in common: records, held-out parts, and the refusal of data that no model can use."""

import typing

import numpy as np
import pytest

from deqflow.data.digits import Digits
from deqflow.data.source import InMemory, Source, Subset, hold_out
from deqflow.registry import FromRuntime, UserError, kinds, resolve


def test_gathers_whole_examples_in_the_order_asked():
    records = InMemory({"x": np.arange(8.0).reshape(4, 2), "y": np.arange(4)}, "test")
    batch = records.gather(np.array([3, 0, 3]))
    assert np.array_equal(batch["y"], [3, 0, 3])
    assert np.array_equal(batch["x"], [[6, 7], [0, 1], [6, 7]])


def test_mapped_columns_are_told_apart(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    assert InMemory({"x": np.load(tmp_path / "x.npy", mmap_mode="r")}, "test").access == "mapped"
    assert InMemory({"x": np.load(tmp_path / "x.npy")}, "test").access == "memory"


BAD = {
    "empty": ({"x": np.zeros((0, 2))}, "is empty"),
    "unequal": ({"x": np.zeros((3, 2)), "y": np.zeros(2, int)}, r"their numbers differ: \{'x': 3, 'y': 2\}"),
    "nan": ({"x": np.array([[0.0, 1.0], [np.nan, 1.0], [np.nan, 1.0]])}, "x of test .* example 1 holds NaN"),
    "infinite": ({"x": np.array([[0.0], [0.0], [-np.inf]])}, "example 2 holds NaN or infinity"),
    "nan far down": ({"x": np.where(np.arange(3_000_000) == 2_999_999, np.nan, 0.0)[:, None]}, "example 2999999 holds"),
}


@pytest.mark.parametrize("columns, message", BAD.values(), ids=BAD)
def test_unusable_columns_are_refused(columns, message):
    with pytest.raises(UserError, match=message):
        InMemory(columns, "test")


def test_held_out_parts_are_disjoint_fixed_and_complete():
    records = InMemory({"x": np.arange(100.0)}, "test")
    fractions = {"validation": 0.1, "test": 0.25}
    parts = {name: hold_out(records, fractions, name, "test") for name in ("train", "validation", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 65, "validation": 10, "test": 25}
    assert np.array_equal(np.sort(np.concatenate([part.chosen for part in parts.values()])), np.arange(100))
    again = hold_out(records, fractions, "validation", "test")
    assert np.array_equal(again.chosen, parts["validation"].chosen)
    assert not np.array_equal(again.chosen, np.arange(10))  # drawn from everywhere, not the first ones
    assert np.array_equal(parts["test"].gather(np.array([4]))["x"], parts["test"].chosen[[4]])


@pytest.mark.parametrize("size, fraction", [(3, 0.1), (3, 0.9)])
def test_a_part_without_examples_is_refused(size, fraction):
    with pytest.raises(UserError, match="every split needs one at least"):
        hold_out(InMemory({"x": np.zeros(size)}, "test"), {"validation": fraction}, "train", "test")


def test_a_subset_renumbers():
    records = Subset(InMemory({"x": np.arange(10)}, "test"), np.array([5, 2]))
    assert len(records) == 2
    assert records.gather(np.array([1, 0]))["x"].tolist() == [2, 5]


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="unknown split 'valid'; did you mean 'validation'"):
        Digits().split("valid")


@pytest.mark.parametrize("kind", kinds("data"))
def test_every_kind_is_a_source_whose_arguments_a_config_can_give(kind):
    source = resolve("data", kind)
    assert issubclass(source, Source)
    hints = typing.get_type_hints(source.__init__, include_extras=True)
    hints.pop("return", None)
    assert "batch_size" in hints
    assert not any(FromRuntime in getattr(hint, "__metadata__", ()) for hint in hints.values())
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        source(batch_size=0, **{name: "x" for name in ("train", "name", "path") if name in hints})
