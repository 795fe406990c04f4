"""Every cell, by the properties that all of them share."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax.nnx import bridge

from deqflow.deq import DEQ, ConvCell, MLPCell, MonotoneConvCell, MonotoneDenseCell, MultiscaleCell, ResidualConvCell
from deqflow.implicit import Implicit, JacobianFree, Neumann, Picard
from deqflow.nn import SpectralNorm, WeightNorm

# name -> how it is made, the shape of a sample of x
CELLS = {
    "conv": (functools.partial(ConvCell, 8, groups=4), (5, 4, 8)),
    "mlp": (functools.partial(MLPCell, 6, inputs=3, hidden=5), (3,)),
    "mlp, spectral norm": (functools.partial(MLPCell, 6, parametrise="spectral"), (6,)),
    "monotone_conv": (functools.partial(MonotoneConvCell, 3), (4, 3, 3)),
    "monotone_dense": (functools.partial(MonotoneDenseCell, 5, splitting="peaceman_rachford"), (5,)),
    "multiscale": (functools.partial(MultiscaleCell, (4, 8), groups=2, weight_norm=True), (4, 6, 4)),
    "residual_conv": (functools.partial(ResidualConvCell, 8, groups=4, weight_norm=True), (5, 4, 8)),
}


def total(z):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(z))


def norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))


@pytest.fixture(scope="module", params=CELLS.values(), ids=CELLS.keys())
def case(request):
    """A cell and what a layer makes of it under plain `jax.jit`."""
    make, shape = request.param
    cell = make(rngs=nnx.Rngs(0))
    layer = DEQ(cell, Picard(rtol=1e-6, max_steps=60), Implicit(linear=Neumann(rtol=1e-6, max_steps=60)))
    x = jax.random.normal(jax.random.key(1), (3, *shape))
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def solve(params, x):
        def loss(params):
            solution = nnx.merge(graphdef, params, rest, copy=True).solve(x)
            return total(solution.value), solution

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, solution), gradient = solve(params, x)
    return types.SimpleNamespace(cell=cell, layer=layer, x=x, params=params, solve=solve, solution=solution, gradient=gradient)


def test_one_step_keeps_structure_shape_and_dtype(case):
    described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    start = case.cell.initial(case.x)
    assert described(jax.eval_shape(case.cell, start, case.x)) == described(start) == described(case.solution.value)


def test_plain_iteration_converges_at_initialisation(case):
    assert case.solution.stats.converged.all()
    assert norm(case.solution.value) > 0.1


def test_samples_are_independent_bitwise(case):
    (_, other), _ = case.solve(case.params, case.x.at[1].multiply(50.0).at[2].set(jnp.nan))
    for a, b in zip(jax.tree.leaves(case.solution), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a[0], b[0])


def test_value_and_gradients_agree_with_unrolling_and_with_differences(case):
    @nnx.jit
    def unrolled(cell, x):
        def loss(cell):
            f = cell.prepare(x)
            z, _ = jax.lax.scan(lambda z, _: (f(z), None), cell.initial(x), length=60)
            return total(z), z

        return nnx.grad(loss, has_aux=True)(cell)

    want, value = unrolled(case.cell, case.x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), case.solution.value, value)
    for a, b in zip(jax.tree.leaves(case.gradient), jax.tree.leaves(want), strict=True):
        assert norm(b) > 0
        assert norm(a - b) < 1e-3 * norm(b) + 1e-3

    slope = norm(case.gradient)

    def along_the_gradient(h):
        moved = jax.tree.map(lambda p, g: p + h / slope * g, case.params, case.gradient)
        return case.solve(moved, case.x)[0][0]

    np.testing.assert_allclose((along_the_gradient(3e-3) - along_the_gradient(-3e-3)) / 6e-3, slope, rtol=2e-2)


class Net(linen.Module):
    """A Linen network with an equilibrium inside."""

    @linen.compact
    def __call__(self, x):
        z = bridge.to_linen(Layer)(x)
        return linen.Dense(2)(z)


class Layer(DEQ):
    def __init__(self, rngs):
        super().__init__(MLPCell(6, inputs=3, rngs=rngs), Picard(rtol=1e-5), JacobianFree())


def test_from_linen_through_the_bridge():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    variables = Net().init(jax.random.key(0), x)
    apply = jax.jit(lambda params, x: Net().apply({**variables, "params": params}, x, mutable=True)[0])
    assert apply(variables["params"], x).shape == (4, 2)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(apply(params, x) ** 2)))(variables["params"])
    assert all(norm(leaf) > 0 for leaf in jax.tree.leaves(gradient))


DROPPING = {
    "conv": lambda: ConvCell(8, groups=4, dropout=0.5, rngs=nnx.Rngs(0)),
    "mlp": lambda: MLPCell(8, dropout=0.5, rngs=nnx.Rngs(0)),
    "multiscale": lambda: MultiscaleCell((8, 8), groups=4, dropout=0.5, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("make", DROPPING.values(), ids=DROPPING.keys())
def test_dropout_draws_one_mask_per_solve_and_none_without_a_key(make):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 8))

    @nnx.jit
    def outputs(cell, x):
        z = jax.tree.map(jnp.ones_like, cell.initial(x))
        f, other, plain = (cell.prepare(x, key) for key in (jax.random.key(0), jax.random.key(1), None))
        return [jax.tree.leaves(map(z)) for map in (f, f, other, plain)]

    for first, second, other, plain in zip(*outputs(make(), x), strict=True):
        np.testing.assert_array_equal(first, second)
        assert not np.allclose(first, other, atol=1e-3)
        assert not np.allclose(first, plain, atol=1e-3)


def test_options_reach_the_weights():
    assert isinstance(MLPCell(4, parametrise="spectral", rngs=nnx.Rngs(0)).second.kernel, SpectralNorm)
    assert isinstance(ConvCell(8, weight_norm=True, rngs=nnx.Rngs(0)).recurrent.kernel, WeightNorm)
    assert isinstance(ResidualConvCell(8, weight_norm=True, rngs=nnx.Rngs(0)).block.first.kernel, WeightNorm)


def test_a_spectrally_normalised_mlp_has_one_equilibrium_whatever_its_weights():
    cell = MLPCell(8, parametrise="spectral", gain=0.9, rngs=nnx.Rngs(0))
    for layer in (cell.first, cell.second):
        layer.kernel.kernel[...] *= 30
    x, starts = jnp.ones((2, 8)), jax.random.normal(jax.random.key(0), (2, 2, 8))
    solve = nnx.jit(lambda cell, z0: DEQ(cell, Picard(rtol=1e-6, max_steps=300)).solve(x, z0=z0).value)
    np.testing.assert_allclose(solve(cell, starts[0]), solve(cell, starts[1]), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rngs: ConvCell(8, groups=3, rngs=rngs), "3 groups for 8 channels"),
        (lambda rngs: ConvCell(8, gain=0.0, rngs=rngs), "gain must be > 0"),
        (lambda rngs: ResidualConvCell(8, dropout=1.0, rngs=rngs), "dropout must be >= 0 and < 1, got 1.0"),
        (lambda rngs: MLPCell(8, hidden=0, rngs=rngs), "hidden must be >= 1"),
        (lambda rngs: MultiscaleCell((), rngs=rngs), "one scale or more"),
        (lambda rngs: MultiscaleCell((8, 8, 8), rngs=rngs).initial(jnp.ones((1, 8, 6, 8))), "multiples of 4, got 8 x 6"),
    ],
)
def test_what_a_cell_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make(nnx.Rngs(0))
