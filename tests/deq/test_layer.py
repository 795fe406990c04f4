import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.deq import DEQ, Cell, ConvCell
from deqflow.implicit import GMRES, Anderson, ConvergenceError, Implicit, Newton, Picard, Shine, Status, Unrolled


class Dense(Cell):
    """A contraction whose state is a pytree of two parts."""

    def __init__(self, width, *, rngs):
        self.recurrent = nnx.Linear(width, width, rngs=rngs)
        self.inject = nnx.Linear(width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def prepare(self, x, key=None):
        u = self.dropout(self.inject(x["signal"]), rngs=key)
        return lambda z: {"a": jnp.tanh(0.3 * self.recurrent(z["b"]) + u), "b": 0.5 * z["a"]}

    def initial(self, x):
        return {"a": jnp.zeros_like(x["signal"]), "b": jnp.zeros_like(x["signal"])}


class Plain(nnx.Module):
    """Not a `Cell`: just a module that maps (z, x) to z."""

    def __init__(self):
        self.weight = nnx.Param(0.5 * jnp.eye(3))

    def __call__(self, z, x):
        return jnp.tanh(z @ self.weight[...] + x)


@pytest.fixture
def layer():
    layer = DEQ(Dense(4, rngs=nnx.Rngs(0)), Anderson(rtol=1e-6), Implicit(linear=GMRES(rtol=1e-7)))
    layer.eval()
    return layer


def test_the_output_is_the_fixed_point_of_the_cell(layer):
    x = {"signal": jax.random.normal(jax.random.key(0), (3, 4)), "label": jnp.arange(3)}
    z = layer(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), layer.cell(z, x), z)
    assert layer.solve(x).stats.converged.all()


def test_gradients_agree_with_unrolling(layer):
    x = {"signal": jax.random.normal(jax.random.key(0), (3, 4))}

    def implicit(layer, x):
        return jnp.sum(layer(x)["a"] ** 2)

    def unrolled(layer, x):
        f, z = layer.cell.prepare(x), layer.cell.initial(x)
        for _ in range(60):
            z = f(z)
        return jnp.sum(z["a"] ** 2)

    got, want = (nnx.jit(nnx.grad(loss, argnums=(0, 1)))(layer, x) for loss in (implicit, unrolled))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got, want)


def test_any_module_will_do_as_a_cell():
    layer = DEQ(Plain(), Picard(rtol=1e-6))
    x = jnp.ones((2, 3))
    np.testing.assert_allclose(layer(x), layer.cell(layer(x), x), atol=1e-5)


def test_warm_start_budget_and_trace():
    layer = DEQ(Plain(), Picard(rtol=1e-5))
    x = jnp.ones((2, 3)) * jnp.array([[0.1], [1.0]])
    solve = nnx.jit(lambda layer, x, z0, budget: layer.solve(x, z0=z0, budget=budget, trace=True))
    cold = solve(layer, x, jnp.zeros_like(x), 50)
    warm = solve(layer, x, cold.value, 50)
    assert (warm.stats.steps == 1).all()
    assert (cold.stats.steps > 3).all()
    assert cold.stats.trace.shape == (50, 2)
    assert (solve(layer, x, jnp.zeros_like(x), 2).stats.status == Status.STEP_LIMIT).all()
    mended = solve(layer, x, cold.value.at[0, 0].set(jnp.nan), 50)
    np.testing.assert_array_equal(mended.stats.steps, [cold.stats.steps[0], 1])
    with pytest.raises(ValueError, match="z0"):
        layer.solve(x, z0=jnp.zeros((2, 4)))


def test_a_non_finite_input_is_replaced_flagged_and_without_gradient(layer):
    good = jax.random.normal(jax.random.key(0), (3, 4))
    bad = good.at[1, 2].set(jnp.nan)

    @nnx.jit
    def gradients(layer, x):
        def loss(layer, x):
            value, stats = layer.solve({"signal": x})
            return jnp.sum(value["a"] ** 2), (value, stats)

        return nnx.grad(loss, argnums=(0, 1), has_aux=True)(layer, x)

    (dlayer, dx), (value, stats) = gradients(layer, bad)
    assert list(stats.status) == [Status.CONVERGED, Status.INVALID_INPUT, Status.CONVERGED]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((dlayer, dx, value)))
    np.testing.assert_array_equal(dx[1], 0)
    (dwithout, _), _ = gradients(layer, good[jnp.array([0, 2])])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), dlayer, dwithout)


def test_one_draw_of_randomness_serves_the_whole_solve():
    layer = DEQ(Dense(4, rngs=nnx.Rngs(0)), Anderson(rtol=1e-5))
    layer.train()
    x = {"signal": jax.random.normal(jax.random.key(0), (3, 4))}
    with_key = layer.solve(x, key=jax.random.key(1))
    assert with_key.stats.converged.all()
    np.testing.assert_array_equal(with_key.value["a"], layer(x, key=jax.random.key(1))["a"])
    assert not np.array_equal(with_key.value["a"], layer(x, key=jax.random.key(2))["a"])
    with pytest.raises(Exception, match=r"(?i)rng"):
        layer(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z[:, :2], r"output of the cell Broken.*expected float32\[2, 3\], got float32\[2, 2\]"),
        (lambda z: z.astype(jnp.bfloat16), "got bfloat16"),
        (lambda z: (z,), "structure"),
    ],
)
def test_a_cell_whose_output_differs_from_its_state(change, message):
    class Broken(nnx.Module):
        def __call__(self, z, x):
            return change(z)

    with pytest.raises(ValueError, match=message):
        DEQ(Broken())(jnp.ones((2, 3)))


def test_batch_normalisation_in_a_cell_is_refused():
    class Normalised(nnx.Module):
        def __init__(self, *, rngs):
            self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)])

        def __call__(self, z, x):
            return jnp.tanh(self.blocks[1](self.blocks[0](z)) + x)

    with pytest.raises(ValueError, match=r"cell Normalised holds batch statistics at blocks\.1\.mean: .*GroupNorm.*or before the layer"):
        DEQ(Normalised(rngs=nnx.Rngs(0)))


def test_a_gradient_that_does_not_work_with_the_solver_of_training_or_of_evaluation():
    with pytest.raises(ValueError, match="Shine works with the solver Broyden, got Picard"):
        DEQ(Plain(), Picard(), Shine())
    with pytest.raises(ValueError, match="Unrolled differentiates the solver's steps, and those of Newton do not; use Implicit"):
        DEQ(Plain(), Picard(), Unrolled(), eval_solver=Newton())


def test_a_cell_that_diverges_gives_a_finite_output_no_gradient_and_tells_what_to_change():
    class Growing(nnx.Module):
        def __init__(self):
            self.a = nnx.Param(jnp.float32(3.0))

        def __call__(self, z, x):
            return self.a[...] * z + x

    layer, x = DEQ(Growing(), Picard(max_steps=100)), jnp.ones((2, 3))
    value, gradient = nnx.value_and_grad(lambda layer: layer(x).sum())(layer)
    assert np.isfinite(value)
    assert gradient["cell"]["a"][...] == 0
    assert layer.diagnostics.failures[...] == 1
    with pytest.raises(ConvergenceError, match=r"2 of 2 samples: the iteration grew without bound.*\(DIVERGED\); damp the solver"):
        layer.solve(x).check()


def test_samples_are_independent_bitwise():
    layer = DEQ(ConvCell(8, groups=4, rngs=nnx.Rngs(0)), Anderson(rtol=1e-4))
    x = jax.random.normal(jax.random.key(0), (4, 5, 5, 8))

    @nnx.jit
    def run(layer, x):
        def loss(layer, x):
            value, stats = layer.solve(x)
            return jnp.sum(value**2), (value, stats)

        return nnx.grad(loss, argnums=1, has_aux=True)(layer, x)

    first = run(layer, x)
    second = run(layer, x.at[1].multiply(50.0).at[2].set(0.0).at[3, 0].set(jnp.inf))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
