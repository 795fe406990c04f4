import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.deq import DEQ, ConvCell
from deqflow.implicit import GMRES, Anderson, Implicit


@pytest.fixture
def cell():
    return ConvCell(8, groups=4, rngs=nnx.Rngs(0))


def test_converges_at_initialisation_and_is_small_beside_the_input(cell):
    x = jax.random.normal(jax.random.key(0), (16, 6, 6, 8))
    stats = nnx.jit(lambda layer: layer.solve(x).stats)(DEQ(cell, Anderson(rtol=1e-4)))
    assert stats.converged.all()
    assert stats.steps.max() <= 15


def test_calling_the_cell_is_one_step_of_the_prepared_map(cell):
    x, z = jax.random.normal(jax.random.key(0), (2, 3, 6, 6, 8))
    np.testing.assert_allclose(cell(z, x), cell.prepare(x)(z), rtol=1e-5, atol=1e-6)
    assert cell.initial(x).shape == z.shape


def test_gradients_of_every_parameter_agree_with_unrolling(cell):
    x = jax.random.normal(jax.random.key(0), (3, 5, 5, 8))
    layer = DEQ(cell, Anderson(rtol=1e-6, max_steps=100), Implicit(linear=GMRES(rtol=1e-6)))

    def implicit(layer):
        return jnp.sum(jnp.sin(layer(x)))

    def unrolled(layer):
        f = layer.cell.prepare(x)
        z, _ = jax.lax.scan(lambda z, _: (f(z), None), layer.cell.initial(x), length=40)
        return jnp.sum(jnp.sin(z))

    got, want = (nnx.jit(nnx.grad(loss))(layer) for loss in (implicit, unrolled))
    norms = jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b) / (1e-3 + jnp.linalg.norm(b))), got, want)
    assert max(jax.tree.leaves(norms)) < 1e-3
    assert all(float(jnp.linalg.norm(leaf)) > 0 for leaf in jax.tree.leaves(want))


def test_groups_must_divide_the_width():
    with pytest.raises(ValueError, match="groups"):
        ConvCell(8, groups=3, rngs=nnx.Rngs(0))
