"""A cell whose state has several resolutions."""

import itertools
import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.deq.cell import Cell
from deqflow.nn import Conv, GroupNorm, Resample, ResidualBlock, WeightNorm
from deqflow.nn.conv import Images
from deqflow.registry import Range, check_ranges

Scales = tuple[Float[Array, "batch _ _ _"], ...]
"""Images of falling resolution, each half as high and wide as the one before."""


class MultiscaleCell(Cell):
    """Multiscale cell: all resolutions of an image are solved for together, each with a residual block, and fused in every step.

        r_k = z_k + V_k d(relu(norm(W_k z_k)))                                           at every scale k
        f(z, x)_k = relu(norm(Σ_{j<k} D_{jk} r_j + gain (r_k + Σ_{j>k} U_{jk} r_j) + [k = 1] u)),   u = norm(U x)

    D is a chain of normalised convolutions with stride 2 and U a normalised 1 x 1 convolution with its pixels repeated (`Resample`). The
    input drives the finest scale and each scale drives the coarser ones, both with weight 1; `gain` weighs what a scale gets from itself
    and from coarser ones. So at initialisation a small gain makes the iteration converge fast, however many scales there are.

    Args:
      widths: channels of each scale, the finest first; the input `x` has those of the first.
      groups: groups of the normalisations; must divide every width.
      gain: strength of the feedback, a constant factor.
      dropout: rate of the dropout of hidden numbers, with one mask per solve, in training only.
      weight_norm: whether V and W are weight-normalised.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if a number is out of its range, or there is no scale; when called, if an image cannot be halved often enough.

    Example:
      >>> cell = MultiscaleCell((8, 16), groups=4, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 6, 6, 8))
      >>> [z.shape for z in cell(cell.initial(x), x)]
      [(2, 6, 6, 8), (2, 3, 3, 16)]

    Bai, Koltun and Kolter, "Multiscale deep equilibrium models", 2020.
    """

    def __init__(
        self,
        widths: tuple[Annotated[int, Range(ge=1)], ...],
        *,
        groups: Annotated[int, Range(ge=1)] = 8,
        gain: Annotated[float, Range(gt=0)] = 0.25,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        weight_norm: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check_ranges(MultiscaleCell.__init__, locals())
        if min(widths, default=0) < 1:
            raise ValueError(f"widths must be the channels of one scale or more, each at least 1, got {widths}")
        self.widths = widths
        self.gain = gain
        self.inject = Conv(widths[0], widths[0], bias=False, rngs=rngs)
        self.inject_norm = GroupNorm(widths[0], groups)
        parametrise = WeightNorm if weight_norm else None
        self.blocks = nnx.List([ResidualBlock(w, groups=groups, dropout=dropout, parametrise=parametrise, rngs=rngs) for w in widths])
        self.paths = nnx.List(
            [Resample(widths[j], widths[k], octaves=k - j, groups=groups, rngs=rngs) for j, k in _pairs(len(widths))],
        )
        self.norms = nnx.List([GroupNorm(width, groups) for width in widths])

    def prepare(self, x: Images, key: Key[Array, ""] | None = None) -> Callable[[Scales], Scales]:
        u = self.inject_norm(self.inject(x))
        keys = [None] * len(self.widths) if key is None else jax.random.split(key, len(self.widths))
        blocks = [block.prepare(z.shape, key) for block, z, key in zip(self.blocks, self.initial(x), keys, strict=True)]

        def f(z: Scales) -> Scales:
            r = [block(part) for block, part in zip(blocks, z, strict=True)]
            drive, feedback = [[u], *([] for _ in r[1:])], [[part] for part in r]
            for (j, k), path in zip(_pairs(len(r)), self.paths, strict=True):
                (drive if j < k else feedback)[k].append(path(r[j]))
            parts = [_normalised_sum(d) + self.gain * _normalised_sum(f) for d, f in zip(drive, feedback, strict=True)]
            return tuple(jax.nn.relu(norm(part)) for norm, part in zip(self.norms, parts, strict=True))

        return f

    def initial(self, x: Images) -> Scales:
        batch, height, width, _ = x.shape
        coarsest = 2 ** (len(self.widths) - 1)
        if height % coarsest or width % coarsest:
            raise ValueError(f"{len(self.widths)} scales need images whose sides are multiples of {coarsest}, got {height} x {width}")
        return tuple(jnp.zeros((batch, height >> k, width >> k, channels), x.dtype) for k, channels in enumerate(self.widths))


def _normalised_sum(terms: list[Images]) -> Images:
    return sum(terms[1:], terms[0]) / math.sqrt(len(terms))


def _pairs(scales: int) -> list[tuple[int, int]]:
    """All pairs of different scales, from and to."""
    return list(itertools.permutations(range(scales), 2))
