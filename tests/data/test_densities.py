"""The generated densities against their equations, written here a second time as densities.

For samples of the density q, the mean of `-log p` is the entropy of q plus KL(q, p): it equals the entropy only if the density here, the
samples and the stated entropy all agree.
"""

import numpy as np
import pytest
from scipy.special import i0e, ndtr

from deqflow.data.densities import Checkerboard, EightGaussians, Moons, Pinwheel, Rings, SwissRoll, TwoSpirals

NODES, WEIGHTS = np.polynomial.legendre.leggauss(300)
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2  # on [0, 1]


def gaussians(x, centres, weights, scale):
    squared = ((x[:, None] - centres) ** 2).sum(axis=-1)
    return np.exp(-squared / (2 * scale**2)) @ weights / (2 * np.pi * scale**2)


def moons(x):
    t = np.pi * NODES
    upper = np.stack([np.cos(t), np.sin(t)], axis=1)
    lower = np.stack([1 - np.cos(t), 0.5 - np.sin(t)], axis=1)
    return gaussians(x, 2 * np.concatenate([upper, lower]) + [-1, -0.2], np.tile(WEIGHTS / 2, 2), 0.2)


def checkerboard(x):
    black = np.floor(x / 2).sum(axis=1) % 2 == 0
    return np.where(black & (np.abs(x) <= 4).all(axis=1), 1 / 32, 0.0)


def eight_gaussians(x):
    t = np.arange(8) * np.pi / 4
    return gaussians(x, 4 / np.sqrt(2) * np.stack([np.cos(t), np.sin(t)], axis=1), np.full(8, 1 / 8), 0.5 / np.sqrt(2))


def pinwheel(x):
    u = x * [1, -1] / 2  # mirrored, so that blades turn with growing angle
    radius, angle = np.hypot(*u.T), np.arctan2(u[:, 1], u[:, 0])
    t = np.linspace(-np.pi, np.pi, 721)  # direction of (a, b), which has the radius of u
    density = np.zeros(len(x))
    for blade in range(5):
        # Where t + exp(a) / 4 + 2 pi blade / 5 meets the angle of u (modulo a turn) lies a preimage.
        turns = (t + 0.25 * np.exp(radius[:, None] * np.cos(t)) + 2 * np.pi * blade / 5 - angle[:, None]) / (2 * np.pi)
        row, column = np.nonzero(np.diff(np.floor(turns), axis=1))
        before, after = turns[row, column], turns[row, column + 1]
        crossing = np.maximum(np.floor(before), np.floor(after))
        root = t[column] + (t[1] - t[0]) * (crossing - before) / (after - before)
        a, b = radius[row] * np.cos(root), radius[row] * np.sin(root)
        normal = np.exp(-((a - 1) ** 2) / (2 * 0.3**2) - b**2 / (2 * 0.1**2)) / (2 * np.pi * 0.3 * 0.1)
        np.add.at(density, row, normal / (4 * np.abs(1 - b * np.exp(a) / 4)) / 5)
    return density


def two_spirals(x):
    t = 3 * np.pi * np.sqrt(NODES)
    box, noise = 0.5 / 3, 0.1

    def smeared(d):  # a uniform variable on [0, box] plus Gaussian noise
        return (ndtr(d / noise) - ndtr((d - box) / noise)) / box

    arms = [smeared(s * x[:, :1] + t * np.cos(t) / 3) * smeared(s * x[:, 1:] - t * np.sin(t) / 3) @ WEIGHTS for s in (1, -1)]
    return sum(arms) / 2


def rings(x):
    radius, variance = np.hypot(*x.T)[:, None], 0.08**2
    circles = 3 * np.array([0.25, 0.5, 0.75, 1.0])
    # i0e is I0 without its exponential growth, which completes the square.
    return (i0e(radius * circles / variance) * np.exp(-((radius - circles) ** 2) / (2 * variance))).mean(axis=1) / (2 * np.pi * variance)


def swiss_roll(x):
    t = 1.5 * np.pi * (1 + 2 * NODES)
    return gaussians(x, np.stack([t * np.cos(t), t * np.sin(t)], axis=1) / 5, WEIGHTS, 0.2)


CASES = {
    "moons": (Moons, moons),
    "checkerboard": (Checkerboard, checkerboard),
    "eight_gaussians": (EightGaussians, eight_gaussians),
    "pinwheel": (Pinwheel, pinwheel),
    "two_spirals": (TwoSpirals, two_spirals),
    "rings": (Rings, rings),
    "swiss_roll": (SwissRoll, swiss_roll),
}


def points(source, split):
    records = source.split(split)
    return records.gather(np.arange(len(records)))["x"]


@pytest.mark.parametrize("source, density", CASES.values(), ids=CASES)
def test_entropy_is_that_of_the_samples(source, density):
    x = points(source(test_examples=6000, seed=1), "test").astype(np.float64)
    nats = -np.log(np.concatenate([density(part) for part in np.array_split(x, 10)]))
    error = nats.std() / np.sqrt(len(nats))
    assert abs(nats.mean() - source.entropy) < 3.5 * error + 1e-6
    assert error < 0.02  # otherwise the line above shows nothing


@pytest.mark.parametrize("source, density", CASES.values(), ids=CASES)
def test_entropy_is_the_integral(source, density):
    if source is Checkerboard:
        assert source.entropy == pytest.approx(np.log(32), abs=1e-12)
        return
    size = 0.05 if source is not Rings else 0.025
    axis = np.arange(-6, 6, size) + size / 2
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    p = np.concatenate([density(part) for part in np.array_split(grid[(np.abs(grid) < 5).all(axis=1)], 100)]).clip(1e-300)
    assert size**2 * p.sum() == pytest.approx(1, abs=1e-3)
    assert -(size**2) * (p * np.log(p)).sum() == pytest.approx(source.entropy, abs=2e-3)


@pytest.mark.parametrize("source", [case[0] for case in CASES.values()], ids=CASES)
def test_splits_are_seeded_and_independent(source):
    made = source(examples=50, validation_examples=50, test_examples=50)
    train, validation, test = (points(made, split) for split in ("train", "validation", "test"))
    assert (train.shape, train.dtype.name) == ((50, 2), "float32")
    assert np.array_equal(train, points(made, "train"))
    other = points(source(examples=50, seed=1), "train")
    for unlike in (validation, test, other):
        assert not np.isin(train, unlike).any()


def test_spec_needs_no_sample():
    spec = Checkerboard(examples=10**12).spec()
    assert (spec.input_shape, spec.dtype, spec.classes, spec.levels) == ((2,), "float32", None, None)
    assert spec.entropy == pytest.approx(3.4657, abs=1e-4)
