"""The looped transformer cells: shapes, causality, memory, dropout, and gradients against unrolling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.deq import DEQ, AttentionInjectionCell, RecurrentDepthCell, Segment, TransformerCell
from deqflow.implicit import GMRES, Anderson, Implicit

CELLS = {
    "transformer": lambda **options: TransformerCell(8, heads=2, span=8, gain=0.3, rngs=nnx.Rngs(0), **options),
    "recurrent depth": lambda **options: RecurrentDepthCell(8, heads=2, span=8, layers=2, gain=0.2, rngs=nnx.Rngs(0), **options),
    "attention injection": lambda **options: AttentionInjectionCell(8, heads=2, span=8, layers=2, gain=0.2, rngs=nnx.Rngs(0), **options),
}
SOLVER = Anderson(rtol=1e-6, max_steps=100)


def inputs(batch=2, time=6):
    x = jax.random.normal(jax.random.key(0), (batch, time, 8))
    return x / x.std(-1, keepdims=True)


solve = nnx.jit(lambda layer, x: layer.solve(x))


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_converges_at_initialisation_to_a_causal_equilibrium(make):
    layer, x = DEQ(make(), SOLVER), inputs()
    (z, stats), (other, _) = solve(layer, x), solve(layer, x.at[:, 3:].multiply(-1.0))
    assert stats.converged.all()
    assert stats.steps.max() <= 40
    assert z.shape == x.shape
    np.testing.assert_allclose(z[:, :3], other[:, :3], atol=1e-4)
    assert float(jnp.abs(z[:, 3:] - other[:, 3:]).max()) > 0.1
    np.testing.assert_allclose((z**2).mean(-1), 1, rtol=1e-2)  # the last normalisation bounds the state


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_the_equilibrium_after_a_memory_is_that_of_the_whole(make):
    layer, x = DEQ(make(), SOLVER), inputs()
    whole = solve(layer, x).value
    second = solve(layer, Segment(x[:, 3:], x[:, :3], solve(layer, x[:, :3]).value))
    assert second.stats.converged.all()
    np.testing.assert_allclose(second.value, whole[:, 3:], atol=1e-4)
    assert float(jnp.abs(solve(layer, x[:, 3:]).value - whole[:, 3:]).max()) > 1e-2


@pytest.mark.parametrize("name", ["recurrent depth", "attention injection"])
def test_gradients_of_every_parameter_agree_with_unrolling(name):
    layer, x = DEQ(CELLS[name](), SOLVER, Implicit(linear=GMRES(rtol=1e-6))), inputs()

    def implicit(layer):
        return jnp.sum(jnp.sin(3 * layer(x)))

    def unrolled(layer):
        f = layer.cell.prepare(x)
        z, _ = jax.lax.scan(lambda z, _: (f(z), None), layer.cell.initial(x), length=40)
        return jnp.sum(jnp.sin(3 * z))

    got, want = (nnx.jit(nnx.grad(loss))(layer) for loss in (implicit, unrolled))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert float(np.linalg.norm(b)) > 1e-4, path
        assert float(np.linalg.norm(np.asarray(a) - b)) < 2e-3 * float(np.linalg.norm(b)) + 1e-5, path


def test_one_dropout_mask_serves_the_whole_solve():
    """The map stays the same from one iteration to the next, and another key makes another map."""
    cell, x = CELLS["transformer"](dropout=0.3), inputs()
    f, g = (nnx.jit(lambda cell, key: cell.prepare(x, key)(x))(cell, jax.random.key(seed)) for seed in (1, 2))
    np.testing.assert_allclose(f, cell(x, x, key=jax.random.key(1)), atol=1e-5)
    assert float(jnp.abs(f - g).max()) > 0.1
