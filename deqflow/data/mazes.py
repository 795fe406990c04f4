"""Generated mazes, in which the way from the start to the goal is to be found."""

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import Int, Int32, UInt8

from deqflow.data.source import SPLITS, InMemory, Source, check_split
from deqflow.data.spec import DataSpec
from deqflow.registry import Range, check_ranges

_STEPS = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # up, down, left, right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mazes(Source):
    """Random perfect mazes: between any two cells there is one way, and the pixels of that from start to goal are the target.

    A maze of `size x size` cells is an image of `2 size + 1` pixels on a side, in which every cell and every wall between two cells is one
    pixel: walls are black, what is free is white, the start red and the goal green. `y` has the shape of the image without its colours
    and is 1 on the way, both ends included, and 0 elsewhere. The walls are those of a random depth-first search from the start, which
    makes long corridors; start and goal are two cells drawn uniformly.

    Args:
      size: cells along a side. Of 5 or more there are so many mazes that splits, which are streams of their own, hardly ever share one.
      batch_size: examples in one training batch.
      examples: size of the training split.
      validation_examples: size of the validation split.
      test_examples: size of the test split.
      seed: of the draw, apart from the seed of the run, so that runs with different seeds meet the same data.

    Example:
      >>> maze = Mazes(size=5, examples=3).split("train").gather(np.array([1]))
      >>> for x, y in zip(maze["x"][0], maze["y"][0]):
      ...     print("".join("#" if not pixel.any() else "o" if way else "." for pixel, way in zip(x, y)))
      ###########
      #ooo#ooooo#
      #o#o#####o#
      #o#ooooo#o#
      #o#####o#o#
      #ooo#..ooo#
      #.#o#######
      #.#ooooooo#
      #.#######o#
      #.......#o#
      ###########

    Schwarzschild, Borgnia, Gupta et al., "Can you learn an algorithm? Generalizing from easy to hard problems with recurrent networks",
    2021, whose mazes these are like.
    """

    size: Annotated[int, Range(ge=5)] = 6
    batch_size: Annotated[int, Range(ge=1)] = 64
    examples: Annotated[int, Range(ge=1)] = 50_000
    validation_examples: Annotated[int, Range(ge=1)] = 500
    test_examples: Annotated[int, Range(ge=1)] = 1_000
    seed: Annotated[int, Range(ge=0)] = 0

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def spec(self) -> DataSpec:
        side = 2 * self.size + 1
        return DataSpec((side, side, 3), "uint8", classes=2, levels=2, class_names=("elsewhere", "way"), label_shape=(side, side))

    def split(self, name: str) -> InMemory:
        check_split(name)
        count = (self.examples, self.validation_examples, self.test_examples)[SPLITS.index(name)]
        rng = np.random.default_rng([self.seed, SPLITS.index(name), self.size])
        parent = _search(rng, count, self.size)
        start = np.argmax(parent == np.arange(self.size**2), axis=1)
        goal = (start + rng.integers(1, self.size**2, count)) % self.size**2
        x, y = _drawn(parent, start, goal, self.size)
        return InMemory({"x": x, "y": y}, f"mazes, split {name!r}")


def _search(rng: np.random.Generator, count: int, size: int) -> Int[np.ndarray, "count cells"]:
    """The trees of `count` random depth-first searches, all at once: from which cell each was entered; the first from itself.

    A search goes on to an unseen neighbour drawn uniformly, or back to where it came from if there is none.
    """
    every = np.arange(count)
    at = rng.integers(size**2, size=count)
    parent = np.full((count, size**2), -1)
    parent[every, at] = at
    for _ in range(2 * size**2 - 3):  # each of the other cells is entered once, and all but the last one left
        row, column = at // size + _STEPS[:, :1], at % size + _STEPS[:, 1:]
        inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
        cell = np.where(inside, row * size + column, 0)
        unseen = inside & (parent[every, cell] < 0)
        choice = np.argmax(np.where(unseen, rng.random(unseen.shape), -1), axis=0)
        onward, there = unseen.any(axis=0), cell[choice, every]
        parent[every[onward], there[onward]] = at[onward]
        at = np.where(onward, there, parent[every, at])
    return parent


def _drawn(
    parent: Int[np.ndarray, "count cells"], start: Int[np.ndarray, " count"], goal: Int[np.ndarray, " count"], size: int
) -> tuple[UInt8[np.ndarray, "count side side 3"], Int32[np.ndarray, "count side side"]]:
    """Images of the mazes, and the ways from start to goal."""
    count, side = len(parent), 2 * size + 1
    every = np.arange(count)
    row, column = 2 * (np.arange(size**2) // size) + 1, 2 * (np.arange(size**2) % size) + 1
    x, y = np.zeros((count, side, side, 3), np.uint8), np.zeros((count, side, side), np.int32)
    x[:, row, column] = 1
    # The pixel between a cell and the one it was entered from.
    x[every[:, None], (row + row[parent]) // 2, (column + column[parent]) // 2] = 1
    x[every, row[start], column[start]] = (1, 0, 0)
    x[every, row[goal], column[goal]] = (0, 1, 0)
    at = goal
    for _ in range(size**2):  # from the start one comes to the start
        y[every, row[at], column[at]] = 1
        y[every, (row[at] + row[parent[every, at]]) // 2, (column[at] + column[parent[every, at]]) // 2] = 1
        at = parent[every, at]
    return x, y
