"""The table of bijectors over which every property in `test_bijectors.py` is tested: a new bijector is tested by adding a row."""

import dataclasses
import math
from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import (
    ActNorm,
    AdditiveCoupling,
    Affine,
    AffineCoupling,
    Bijector,
    Chain,
    Continuous,
    ImplicitFlow,
    Inverse,
    InvertibleLinear,
    LeakyReLU,
    Logit,
    MaskedAutoregressive,
    Multiscale,
    Permutation,
    Repeat,
    Residual,
    ResidualCNN,
    ResidualMLP,
    SplineCoupling,
    Squeeze,
    Tanh,
    masks,
)
from deqflow.flows.shapes import of_an_array
from deqflow.implicit import GMRES, Implicit


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: how to build the bijector, and the data it takes."""

    name: str
    build: Callable[[nnx.Rngs], Bijector]
    domain: str = "real"  # or "unit"
    condition_size: int = 0
    slack: float = 1.0  # times the tolerance of what is exact but for rounding

    def bijector(self, dtype=jnp.float32, seed=0):
        """The bijector with random parameters, as after some training, in evaluation mode."""
        bijector = self.build(nnx.Rngs(seed))
        bijector.eval()
        graphdef, params, rest = nnx.split(bijector, nnx.Param, ...)
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves) + 1)
        leaves = [(leaf + 0.3 * jax.random.normal(k, leaf.shape)).astype(dtype) for leaf, k in zip(leaves, keys, strict=False)]
        return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves), rest)

    def data(self, bijector, batch=5, dtype=jnp.float32, seed=0):
        """A batch of data of unit scale, and its condition or `None`."""
        rng = np.random.default_rng(seed)

        def draw(shape):
            if not of_an_array(shape):
                return tuple(draw(part) for part in shape)
            size = (batch, *shape)
            return jnp.asarray(rng.uniform(0.02, 0.98, size) if self.domain == "unit" else rng.normal(size=size), dtype)

        x = draw(bijector.event_shape)
        condition = jnp.asarray(rng.normal(size=(batch, self.condition_size)), dtype) if self.condition_size else None
        return x, condition


def coupling(mask, rngs, condition_size=0, dropout=0.0):
    kept = int(mask.sum())
    conditioner = ResidualMLP(kept, 2 * (mask.size - kept), width=8, depth=2, condition_size=condition_size, dropout=dropout, rngs=rngs)
    return AffineCoupling(mask, conditioner)


def spline(mask, rngs, condition_size=0, bins=5, bound=2.0):
    kept = int(mask.sum())
    numbers = (3 * bins - 1) * (mask.size - kept)
    conditioner = ResidualMLP(kept, numbers, width=8, depth=1, condition_size=condition_size, rngs=rngs)
    return SplineCoupling(mask, conditioner, bins=bins, bound=bound)


def image(coupling, mask, rngs, condition_size=0, numbers=2, **options):
    """A coupling of 2 x 3 images of three channels, with a convolutional conditioner."""
    mask = mask.reshape(2, 3, 3)
    kept = 1 if (mask == mask[0, 0]).all() else 3
    moved = 2 if kept == 1 else 3
    conditioner = ResidualCNN(kept, numbers * moved, width=3, depth=1, condition_size=condition_size, rngs=rngs)
    return coupling(mask, conditioner, **options)


CHANNELS, BOARD = masks.channels((2, 3, 3)), masks.checkerboard((2, 3, 3))


def additive(rngs, condition_size=0):
    return AdditiveCoupling(masks.half(4), ResidualMLP(2, 2, width=8, depth=1, condition_size=condition_size, rngs=rngs))


def chain(rngs, condition_size=0):
    return Chain(
        [
            ActNorm((4,)),
            coupling(masks.half(4), rngs, condition_size),
            Permutation([3, 1, 0, 2]),
            coupling(~masks.half(4), rngs, condition_size, dropout=0.5),
            ActNorm((4,)),
        ]
    )


class Contraction(nnx.Module):
    """`c sin(x W + b)` with `‖W‖₂ <= 1` for every W, and a shift that depends on the condition if there is one."""

    def __init__(self, size, *, bound=0.9, condition_size=0, rngs):
        self.bound = bound
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (size, size)))
        self.bias = nnx.Param(jnp.zeros(size))
        self.shift = nnx.Param(jax.random.normal(rngs.params(), (condition_size, size))) if condition_size else None

    def lipschitz_bound(self):
        return self.bound

    def __call__(self, x, condition=None):
        kernel = self.kernel[...]
        kernel = kernel / jnp.sqrt((kernel**2).sum())  # the Frobenius norm is a bound
        shift = self.bias[...] if self.shift is None else self.bias[...] + condition @ self.shift[...]
        return self.bound * jnp.sin(x @ kernel + shift)


def residual(rngs, condition_size=0, bound=0.9):
    g = Contraction(3, bound=bound, condition_size=condition_size, rngs=rngs)
    return Residual(g, (3,), gradient=Implicit(linear=GMRES(rtol=1e-10)))


def implicit_flow(rngs, condition_size=0):
    sides = (Contraction(3, condition_size=condition_size, rngs=rngs) for _ in range(2))
    return ImplicitFlow(*sides, (3,), gradient=Implicit(linear=GMRES(rtol=1e-10)))


def autoregressive(rngs, condition_size=0):
    gradient = Implicit(linear=GMRES(rtol=1e-10))
    return MaskedAutoregressive(4, width=9, depth=2, condition_size=condition_size, gradient=gradient, rngs=rngs)


def repeat(rngs, condition_size=0):
    return Repeat(lambda rngs: Chain([coupling(masks.half(4), rngs, condition_size), InvertibleLinear((4,), rngs=rngs)]), 2, rngs=rngs)


def multiscale(rngs, condition_size=0):
    """Two levels of 4 x 2 images of one channel."""

    def level(event_shape):
        squeeze = Squeeze(event_shape)
        shape = squeeze.latent_shape
        kept = shape[-1] // 2
        conditioner = ResidualCNN(kept, 2 * kept, width=3, depth=1, condition_size=condition_size, rngs=rngs)
        return Chain([squeeze, InvertibleLinear(shape, rngs=rngs), AffineCoupling(masks.channels(shape).reshape(shape), conditioner)])

    last = (2, 1, 2)
    return Multiscale([level((4, 2, 1)), Chain([ActNorm(last), InvertibleLinear(last, rngs=rngs)])])


class Field(nnx.Module):
    """A small vector field."""

    def __init__(self, size, rngs, condition_size=0):
        self.first = nnx.Linear(size + 1 + condition_size, 6, rngs=rngs)
        self.last = nnx.Linear(6, size, rngs=rngs)

    def __call__(self, t, x, *, condition=None):
        inputs = [x.reshape(len(x), -1), jnp.full((len(x), 1), t)] + ([] if condition is None else [condition])
        return self.last(jnp.tanh(self.first(jnp.concatenate(inputs, axis=1)))).reshape(x.shape)


def continuous(shape, rngs, condition_size=0):
    # Forward mode, in which some properties are tested, is DirectAdjoint's alone.
    return Continuous(Field(math.prod(shape), rngs, condition_size), shape, max_steps=256, adjoint=diffrax.DirectAdjoint())


CASES = [
    Case("affine", lambda rngs: Affine((3,), scale=-0.5, shift=2.0)),
    Case("affine_image", lambda rngs: Affine((2, 2, 1), scale=3.0)),
    Case("logit", lambda rngs: Logit((3,), margin=1e-3), domain="unit"),
    Case("tanh", lambda rngs: Tanh((3,))),
    Case("leaky_relu", lambda rngs: LeakyReLU((2, 2), slope=0.2)),
    Case("linear", lambda rngs: InvertibleLinear((4,), rngs=rngs)),
    Case("linear_image", lambda rngs: InvertibleLinear((2, 2, 3), rngs=rngs)),
    Case("actnorm", lambda rngs: ActNorm((3,))),
    Case("actnorm_image", lambda rngs: ActNorm((2, 3, 2))),
    Case("permutation", lambda rngs: Permutation([2, 0, 3, 1])),
    Case("coupling_half", lambda rngs: coupling(masks.half(5), rngs)),
    Case("coupling_other_half", lambda rngs: coupling(~masks.half(5), rngs)),
    Case("coupling_alternating", lambda rngs: coupling(masks.alternating(5), rngs)),
    Case("coupling_checkerboard", lambda rngs: coupling(masks.checkerboard((2, 2, 2)), rngs)),
    Case("coupling_conditional", lambda rngs: coupling(masks.half(4), rngs, condition_size=3), condition_size=3),
    Case("additive", additive),
    Case("additive_conditional", lambda rngs: additive(rngs, condition_size=2), condition_size=2),
    Case("spline", lambda rngs: spline(masks.half(4), rngs)),
    Case("spline_conditional", lambda rngs: spline(masks.alternating(5), rngs, condition_size=3), condition_size=3),
    Case("coupling_image_channels", lambda rngs: image(AffineCoupling, CHANNELS, rngs, condition_size=1), condition_size=1),
    Case("coupling_image_board", lambda rngs: image(AffineCoupling, ~BOARD, rngs)),
    Case("additive_image_board", lambda rngs: image(AdditiveCoupling, BOARD, rngs, numbers=1)),
    Case("spline_image_channels", lambda rngs: image(SplineCoupling, CHANNELS, rngs, numbers=8, bins=3)),
    Case("spline_image_board", lambda rngs: image(SplineCoupling, BOARD, rngs, numbers=8, bins=3)),
    Case("residual", residual),
    Case("residual_conditional", lambda rngs: residual(rngs, condition_size=2), condition_size=2),
    Case("implicit_flow", implicit_flow),
    Case("implicit_flow_conditional", lambda rngs: implicit_flow(rngs, condition_size=2), condition_size=2),
    Case("inverse", lambda rngs: Inverse(residual(rngs))),
    Case("autoregressive", autoregressive),
    Case("autoregressive_conditional", lambda rngs: autoregressive(rngs, condition_size=2), condition_size=2),
    Case("squeeze", lambda rngs: Squeeze((4, 6, 2))),
    Case("squeeze_3", lambda rngs: Squeeze((3, 6, 1), factor=3)),
    Case("multiscale", multiscale),
    Case("multiscale_conditional", lambda rngs: multiscale(rngs, condition_size=2), condition_size=2),
    Case("multiscale_inverse", lambda rngs: Inverse(Chain([Affine((4, 2, 1), scale=2.0), multiscale(rngs)]))),
    Case("continuous_conditional", lambda rngs: continuous((2, 1), rngs, condition_size=1), condition_size=1, slack=50),
    Case("repeat", repeat),
    Case("repeat_conditional", lambda rngs: repeat(rngs, condition_size=2), condition_size=2),
    Case("chain", chain),
    Case("chain_conditional", lambda rngs: chain(rngs, condition_size=2), condition_size=2),
    Case("chain_logit", lambda rngs: Chain([Logit((4,), margin=0.05), chain(rngs)]), domain="unit"),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param
