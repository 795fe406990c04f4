"""The mazes are perfect, and the target is the one way through them."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from deqflow.data.mazes import Mazes

SOURCE = Mazes(size=5, examples=40, validation_examples=30, test_examples=20)


def graph(image):
    """The numbers of the free pixels, and which of them are neighbours."""
    free = np.flatnonzero(image.any(axis=-1).ravel())
    position = np.stack(np.divmod(free, image.shape[1]), axis=1)
    return free, csr_array(np.abs(position[:, None] - position[None]).sum(axis=-1) == 1)


@pytest.mark.parametrize("size", [5, 8])
def test_between_any_two_cells_there_is_one_way_and_the_target_is_that_from_start_to_goal(size):
    batch = Mazes(size=size, examples=20).split("train").gather(np.arange(20))
    assert batch["x"].shape == (20, 2 * size + 1, 2 * size + 1, 3)
    for image, target in zip(batch["x"], batch["y"], strict=True):
        assert image[1::2, 1::2].any(axis=-1).all(), "every cell is free"
        assert not image[::2, ::2].any(), "and every corner a wall"
        free, neighbours = graph(image)
        assert connected_components(neighbours)[0] == 1
        assert neighbours.nnz == 2 * (len(free) - 1), "a tree: a connected graph with one edge less than it has nodes"
        colours = image.reshape(-1, 3)[free]
        (start,) = np.flatnonzero((colours == (1, 0, 0)).all(axis=1))
        (goal,) = np.flatnonzero((colours == (0, 1, 0)).all(axis=1))
        assert set(map(tuple, colours)) == {(1, 1, 1), (1, 0, 0), (0, 1, 0)}
        before, way = breadth_first_order(neighbours, start)[1], [goal]
        while way[-1] != start:
            way.append(before[way[-1]])
        np.testing.assert_array_equal(np.flatnonzero(target), np.sort(free[way]))


def test_the_specification_is_kept():
    spec, records = SOURCE.spec(), SOURCE.split("test")
    batch = records.gather(np.array([3, 4]))
    assert batch["x"].shape == (2, *spec.input_shape)
    assert batch["y"].shape == (2, *spec.label_shape)
    assert (batch["x"].dtype, batch["y"].dtype) == (spec.dtype, "int32")
    assert (batch["x"].max() + 1, batch["y"].max() + 1) == (spec.levels, spec.classes)


def test_splits_are_the_same_every_time_and_share_no_maze():
    seen = [bytes(image) for split in ("train", "validation", "test") for image in SOURCE.split(split).columns["x"]]
    assert len(set(seen)) == 40 + 30 + 20
    np.testing.assert_array_equal(SOURCE.split("test").columns["x"], SOURCE.split("test").columns["x"])
    other = Mazes(size=5, test_examples=20, seed=1).split("test")
    assert not np.array_equal(SOURCE.split("test").columns["x"], other.columns["x"])


def test_starts_and_goals_are_uniform():
    batch = Mazes(size=5, examples=25_000).split("train").columns["x"]
    for colour in ((1, 0, 0), (0, 1, 0)):
        counts = (batch[:, 1::2, 1::2] == colour).all(axis=-1).sum(axis=0)
        assert counts.sum() == 25_000
        assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="size must be >= 5, got 4"):
        Mazes(size=4)
