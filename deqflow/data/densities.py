"""Generated densities in the plane: the toy sets of FFJORD, each with the entropy that no model can beat.

Grathwohl et al., "FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models", ICLR 2019 (`lib/toy_data.py`).
"""

import abc
import dataclasses
import zlib
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float, Num

from deqflow.data.source import SPLITS, InMemory, Source, check_split
from deqflow.data.spec import DataSpec
from deqflow.registry import Range, check_ranges

Points = Float[np.ndarray, "count 2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Density2D(Source):
    """A density in the plane from which examples are drawn, a stream of its own for every split.

    Args:
      batch_size: examples in one training batch.
      examples: size of the training split.
      validation_examples: size of the validation split.
      test_examples: size of the test split.
      seed: of the draw, apart from the seed of the run, so that runs with different seeds meet the same data.
    """

    # Differential entropy in nats. Where no closed form exists: by quadrature in float64, converged to the digits shown.
    entropy: ClassVar[float]

    batch_size: Annotated[int, Range(ge=1)] = 512
    examples: Annotated[int, Range(ge=1)] = 100_000
    validation_examples: Annotated[int, Range(ge=1)] = 10_000
    test_examples: Annotated[int, Range(ge=1)] = 10_000
    seed: Annotated[int, Range(ge=0)] = 0

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, count: int) -> Points:
        """`count` independent points."""

    def spec(self) -> DataSpec:
        return DataSpec((2,), "float32", entropy=self.entropy)

    def split(self, name: str) -> InMemory:
        check_split(name)
        count = (self.examples, self.validation_examples, self.test_examples)[SPLITS.index(name)]
        rng = np.random.default_rng([self.seed, SPLITS.index(name), zlib.crc32(type(self).__name__.encode())])
        return InMemory({"x": self.sample(rng, count).astype(np.float32)}, f"{type(self).__name__}, split {name!r}")


class Moons(Density2D):
    """Two interleaved half circles of radius 2 with Gaussian noise.

    `x = 2 c + (-1, -0.2) + 0.2 n`, where `c = (cos t, sin t)` or `(1 - cos t, 0.5 - sin t)` with equal chances, `t` is uniform on
    `[0, pi]` and `n` standard normal: scikit-learn's `make_moons(noise=0.1)` as FFJORD scales it.

    Example:
      >>> Moons(examples=100).split("train").gather(np.arange(3))["x"].shape
      (3, 2)
    """

    entropy = 2.39387920

    def sample(self, rng: np.random.Generator, count: int) -> Points:
        angle = rng.uniform(0, np.pi, count)
        upper = _points(np.cos(angle), np.sin(angle))
        lower = _points(1 - np.cos(angle), 0.5 - np.sin(angle))
        arc = np.where(rng.integers(2, size=(count, 1)) == 0, upper, lower)
        return 2 * arc + (-1, -0.2) + 0.2 * rng.normal(size=(count, 2))


class Checkerboard(Density2D):
    """The black fields of a 4 x 4 board on `[-4, 4]^2`, uniformly.

    `p(x) = 1/32` where `floor(x1 / 2) + floor(x2 / 2)` is even, 0 elsewhere: eight fields of side 2, entropy `ln 32`.

    Example:
      >>> x = Checkerboard().split("test").gather(np.arange(1000))["x"]
      >>> bool(np.all(np.floor(x / 2).sum(axis=1) % 2 == 0))
      True
    """

    entropy = float(np.log(32))

    def sample(self, rng: np.random.Generator, count: int) -> Points:
        column = rng.integers(-2, 2, count)
        row = 2 * rng.integers(-1, 1, count) + column % 2
        return 2 * (_points(column, row) + rng.uniform(size=(count, 2)))


class EightGaussians(Density2D):
    """Eight Gaussians of equal weight on a circle.

    `p(x) = 1/8 sum_k N(x; sqrt(8) (cos(k pi / 4), sin(k pi / 4)), I / 8)`. The entropy is `ln 8 + ln(2 pi e / 8)` less 0.0013 nats, by
    which the Gaussians overlap.

    Example:
      >>> EightGaussians(examples=100).split("train").gather(np.arange(3))["x"].shape
      (3, 2)
    """

    entropy = 2.83157836

    def sample(self, rng: np.random.Generator, count: int) -> Points:
        angle = rng.integers(8, size=count) * np.pi / 4
        return np.sqrt(8) * _points(np.cos(angle), np.sin(angle)) + rng.normal(size=(count, 2)) / np.sqrt(8)


class Pinwheel(Density2D):
    """Five Gaussian blades, bent.

    `x = 2 R(-(2 pi k / 5 + exp(a) / 4)) (a, b)`, where `R` rotates, `k` is one of five blades, `a ~ N(1, 0.3^2)` and `b ~ N(0, 0.1^2)`.
    The map from `(a, b)` has determinant `4 (1 + b exp(a) / 4)`.

    Example:
      >>> Pinwheel(examples=100).split("train").gather(np.arange(3))["x"].shape
      (3, 2)

    Johnson et al., "Composing graphical models with neural networks for structured representations and fast inference", NeurIPS 2016.
    """

    entropy = 2.317788

    def sample(self, rng: np.random.Generator, count: int) -> Points:
        a, b = 1 + 0.3 * rng.normal(size=count), 0.1 * rng.normal(size=count)
        angle = 2 * np.pi / 5 * rng.integers(5, size=count) + 0.25 * np.exp(a)
        return 2 * _points(np.cos(angle) * a + np.sin(angle) * b, -np.sin(angle) * a + np.cos(angle) * b)


class TwoSpirals(Density2D):
    """Two spirals of one and a half turns, one the other's mirror image through the origin.

    `x = +-(t (-cos t, sin t) + u / 2) / 3 + 0.1 n`, where `t = 3 pi sqrt(v)`, `v` is uniform on `[0, 1]`, `u` uniform on `[0, 1]^2` and
    `n` standard normal.

    Example:
      >>> TwoSpirals(examples=100).split("train").gather(np.arange(3))["x"].shape
      (3, 2)
    """

    entropy = 2.64545028

    def sample(self, rng: np.random.Generator, count: int) -> Points:
        t = 3 * np.pi * np.sqrt(rng.uniform(size=count))
        arm = _points(-np.cos(t) * t, np.sin(t) * t) + 0.5 * rng.uniform(size=(count, 2))
        return rng.choice([-1, 1], size=(count, 1)) * arm / 3 + 0.1 * rng.normal(size=(count, 2))


class Rings(Density2D):
    """Four concentric circles with Gaussian noise.

    `x = r (cos t, sin t) + 0.08 n`, where `r` is 0.75, 1.5, 2.25 or 3 with equal chances, `t` is uniform on the circle and `n` standard
    normal. At radius `s`, `p(x) = 1/4 sum_r exp(-(s^2 + r^2) / 2 q) I0(s r / q) / (2 pi q)` with `q = 0.08^2`.

    Example:
      >>> Rings(examples=100).split("train").gather(np.arange(3))["x"].shape
      (3, 2)
    """

    entropy = 2.62318277

    def sample(self, rng: np.random.Generator, count: int) -> Points:
        radius = 0.75 * rng.integers(1, 5, count)
        angle = rng.uniform(0, 2 * np.pi, count)
        return _points(radius * np.cos(angle), radius * np.sin(angle)) + 0.08 * rng.normal(size=(count, 2))


class SwissRoll(Density2D):
    """A rolled-up strip, seen from the side, with Gaussian noise.

    `x = t (cos t, sin t) / 5 + 0.2 n`, where `t` is uniform on `[1.5 pi, 4.5 pi]` and `n` standard normal: scikit-learn's
    `make_swiss_roll(noise=1)` without its depth, as FFJORD scales it.

    Example:
      >>> SwissRoll(examples=100).split("train").gather(np.arange(3))["x"].shape
      (3, 2)
    """

    entropy = 2.66964617

    def sample(self, rng: np.random.Generator, count: int) -> Points:
        t = rng.uniform(1.5 * np.pi, 4.5 * np.pi, count)
        return _points(t * np.cos(t), t * np.sin(t)) / 5 + 0.2 * rng.normal(size=(count, 2))


def _points(first: Num[np.ndarray, " count"], second: Num[np.ndarray, " count"]) -> Num[np.ndarray, "count 2"]:
    """Points from their two coordinates."""
    return np.stack([first, second], axis=1)
