"""What an equilibrium layer does differently in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.deq import (
    DEQ,
    Cell,
    JacobianPenalty,
    Pretraining,
    StepBudget,
    Training,
    at_step,
    jacobian_norm,
    penalties,
)
from deqflow.implicit import Anderson, Picard, Status

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 3))


class Tanh(Cell):
    def __init__(self):
        self.weight = nnx.Param(0.9 * jnp.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.5]]))

    def prepare(self, x, key=None):
        return lambda z: jnp.tanh(z @ self.weight[...] + x)

    def initial(self, x):
        return jnp.zeros_like(x)


def steps_at(layer, step, key=KEY, **options):
    at_step(layer, step)
    return np.asarray(layer.solve(X, key=key, **options).stats.steps)


def test_the_budget_follows_its_schedule_in_training_alone():
    layer = DEQ(Tanh(), Picard(rtol=0.0, max_steps=30), training=Training(budget=StepBudget(first=2, last=12, over=10)))
    assert [steps_at(layer, step)[0] for step in (0, 5, 10, 99)] == [2, 7, 12, 12]
    assert steps_at(layer, 0, budget=4)[0] == 4
    layer.eval()
    assert steps_at(layer, 0, key=None)[0] == 30


def test_a_random_budget_stays_within_its_bounds_and_needs_a_key():
    budget = StepBudget(first=2, last=6, over=4, random=True)
    draw = jax.jit(jax.vmap(budget, (None, 0)))
    assert set(np.asarray(draw(9, jax.random.split(KEY, 300)))) == {2, 3, 4, 5, 6}
    assert set(np.asarray(draw(1, jax.random.split(KEY, 300)))) == {2, 3}
    with pytest.raises(ValueError, match="needs a key in training"):
        DEQ(Tanh(), training=Training(budget=budget))(X)
    with pytest.raises(ValueError, match="first=6 and last=2"):
        StepBudget(first=6, last=2, random=True)
    with pytest.raises(ValueError, match="first must be >= 1"):
        StepBudget(first=0, last=2)


def test_pretraining_unrolls_and_then_the_gradient_is_implicit():
    layer = DEQ(Tanh(), Anderson(rtol=1e-6), training=Training(pretraining=Pretraining(steps=3, depth=4)))

    def unrolled(layer, depth):
        f, z = layer.cell.prepare(X), jnp.zeros_like(X)
        for _ in range(depth):
            z = f(z)
        return jnp.sum(z**2)

    gradient = nnx.jit(nnx.grad(lambda layer: jnp.sum(layer.solve(X).value ** 2)))
    for step, depth in ((2, 4), (3, 300)):
        at_step(layer, step)
        expected = nnx.grad(lambda layer: unrolled(layer, depth))(layer)["cell"]["weight"]  # noqa: B023
        np.testing.assert_allclose(gradient(layer)["cell"]["weight"][...], expected[...], rtol=2e-4)
    assert steps_at(layer, 0)[0] == 5  # the last one finds the residual


def test_the_penalty_is_the_jacobian_norm_and_enters_the_gradient():
    cell = Tanh()
    f, z = cell.prepare(X), 0.3 * X
    jacobians = jax.vmap(jax.jacobian(lambda z, x: jnp.tanh(z @ cell.weight[...] + x)))(z, X)
    exact = np.mean(np.sum(np.square(jacobians), (1, 2))) / 3
    np.testing.assert_allclose(jacobian_norm(f, z, KEY, probes=2000), exact, rtol=0.03)

    layer = DEQ(cell, Anderson(rtol=1e-6), training=Training(jacobian=JacobianPenalty(weight=0.5, over=10, probes=200)))

    @nnx.jit
    def gradient(layer, step):
        at_step(layer, step)

        def loss(layer):
            layer(X, key=KEY)
            return penalties(layer)

        return nnx.value_and_grad(loss)(layer)

    (none, _), (half, _), (full, slope) = (gradient(layer, step) for step in (0, 5, 50))
    assert none == 0
    np.testing.assert_allclose(full, 2 * half, rtol=1e-6)
    at = layer(X, key=KEY)
    np.testing.assert_allclose(full, 0.5 * jacobian_norm(f, at, KEY, probes=2000), rtol=0.1)
    # A smaller weight has a smaller Jacobian.
    assert jnp.sum(slope["cell"]["weight"][...] * cell.weight[...]) > 0
    assert penalties(layer) > 0
    layer.eval()
    layer(X)
    assert penalties(layer) == 0
    layer.train()
    with pytest.raises(ValueError, match="a Jacobian penalty needs a key"):
        layer(X)


def test_a_penalty_on_some_steps_has_the_same_mean():
    penalty = JacobianPenalty(weight=0.5, fraction=0.25)
    f = lambda z: 0.5 * z  # noqa: E731
    values = jax.jit(jax.vmap(lambda key: penalty(f, jnp.ones((4, 50)), jnp.int32(0), key)))(jax.random.split(KEY, 400))
    assert 0.15 < np.mean(values > 0) < 0.35
    np.testing.assert_allclose(np.mean(values), 0.5 * 0.25, rtol=0.25)


class Expand(Cell):
    """z = a z + x, or one that overflows where x is large."""

    def __init__(self, a):
        self.a = nnx.Param(jnp.float32(a))

    def prepare(self, x, key=None):
        return lambda z: self.a[...] * z * jnp.exp(jnp.where(x > 50, x * z, 0)) + x

    def initial(self, x):
        return jnp.zeros_like(x)


@pytest.mark.parametrize("a", [1.5, -1.5])
def test_pretraining_unrolls_also_what_does_not_contract(a):
    layer = DEQ(Expand(a), training=Training(pretraining=Pretraining(steps=1, depth=4)))
    x = jnp.array([[2.0], [3.0]])
    value, gradient = nnx.value_and_grad(lambda layer: jnp.sum(layer(x)))(layer)
    np.testing.assert_allclose(value, 5 * (1 + a + a**2 + a**3), rtol=1e-5)
    np.testing.assert_allclose(gradient["cell"]["a"][...], 5 * (1 + 2 * a + 3 * a**2), rtol=1e-5)
    # A sample that overflows is a failed one and contributes nothing.
    bad = jnp.array([[2.0], [60.0]])
    solution = layer.solve(bad)
    assert [Status(int(s)) for s in solution.stats.status] == [Status.STEP_LIMIT, Status.DIVERGED]
    gradient = nnx.grad(lambda layer: jnp.sum(layer(bad)))(layer)
    np.testing.assert_allclose(gradient["cell"]["a"][...], 2 * (1 + 2 * a + 3 * a**2), rtol=1e-5)


def test_failed_and_invalid_samples_are_not_penalised():
    layer = DEQ(Expand(0.5), Picard(rtol=1e-6, max_steps=60), training=Training(jacobian=JacobianPenalty(weight=1.0, probes=50)))

    @nnx.jit
    def gradient(layer, x):
        def loss(layer):
            layer(x, key=KEY)
            return penalties(layer)

        return nnx.value_and_grad(loss)(layer)

    good, slope = gradient(layer, jnp.array([[2.0], [3.0]]))
    np.testing.assert_allclose(good, 0.25, rtol=0.3)
    for bad in ([[2.0], [60.0]], [[2.0], [jnp.nan]]):
        value, found = gradient(layer, jnp.array(bad))
        np.testing.assert_allclose(value, 0.25, rtol=0.4)
        np.testing.assert_allclose(found["cell"]["a"][...] / value, slope["cell"]["a"][...] / good, rtol=1e-4)
    nothing, none = gradient(layer, jnp.full((2, 1), jnp.nan))
    assert nothing == 0
    assert none["cell"]["a"][...] == 0


def test_a_penalty_that_cannot_reach_the_loss_is_an_error():
    layer = DEQ(Tanh(), training=Training(jacobian=JacobianPenalty(weight=0.5)))
    with pytest.warns(UserWarning, match="not updated"), pytest.raises(ValueError, match=r"penalty cannot reach the loss.*nnx\.jit"):
        jax.jit(lambda x: layer(x, key=KEY))(X)


def test_penalties_of_layers_that_are_mapped_add_up():
    make = nnx.vmap(lambda a: DEQ(Expand(a), training=Training(jacobian=JacobianPenalty(weight=1.0, over=4))))
    stack = make(jnp.array([0.1, 0.2, 0.3]))
    at_step(stack, 4)
    nnx.vmap(lambda layer: layer(jnp.ones((2, 1)), key=KEY))(stack)
    single = []
    for a in (0.1, 0.2, 0.3):
        layer = DEQ(Expand(a), training=Training(jacobian=JacobianPenalty(weight=1.0)))
        layer(jnp.ones((2, 1)), key=KEY)
        single.append(penalties(layer))
    np.testing.assert_allclose(penalties(stack), sum(single), rtol=1e-5)


def test_evaluation_has_its_own_solver():
    layer = DEQ(Tanh(), Picard(rtol=1e-2), eval_solver=Anderson(rtol=1e-6))
    rough = layer.solve(X).stats
    layer.eval()
    fine = layer.solve(X).stats
    assert (rough.relative_residual > 1e-4).all()
    assert (fine.relative_residual < 1e-6).all()
    assert (fine.status == Status.CONVERGED).all()
    layer.train()
    np.testing.assert_array_equal(layer.solve(X).stats.steps, rough.steps)
