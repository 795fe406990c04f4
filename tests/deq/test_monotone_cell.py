"""What the table of cells does not say of monotone ones: one equilibrium, from any start, by either splitting."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.deq import DEQ, MonotoneCell, MonotoneConvCell, MonotoneDenseCell
from deqflow.implicit import Dense, Implicit, Picard, Status
from deqflow.nn import MonotoneDense

SPLITTINGS = ["forward_backward", "peaceman_rachford"]
CELLS = {
    "dense": (functools.partial(MonotoneDenseCell, 5, skew=2.0), (3, 5)),
    "conv": (functools.partial(MonotoneConvCell, 2, skew=2.0, linear=Dense()), (3, 3, 4, 2)),
}
TIGHT = Picard(rtol=1e-12, max_steps=3000)


@pytest.fixture(params=CELLS.keys())
def kind(request, x64):
    return request.param


def build(kind, splitting="forward_backward", **options):
    make, shape = CELLS[kind]
    cell = make(splitting=splitting, rngs=nnx.Rngs(0), **options)
    nnx.update(cell, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), nnx.state(cell)))
    return cell, jax.random.normal(jax.random.key(1), shape)


apply = nnx.jit(lambda cell, z, x: jax.nn.relu(cell.operator(z) + cell.inject(x)))
solve = nnx.jit(lambda layer, x, z0: layer.solve(x, z0=z0))


def test_one_equilibrium_from_any_start_by_either_splitting_where_the_equation_itself_diverges(kind):
    cell, x = build(kind)
    cell.operator.B[...] *= 2
    far = 1e3 * jax.random.normal(jax.random.key(2), x.shape)
    plain = jnp.zeros_like(x)
    for _ in range(100):
        plain = apply(cell, plain, x)
    assert np.linalg.norm(apply(cell, plain, x) - plain) > 1
    found = []
    for splitting in SPLITTINGS:
        cell.splitting = splitting
        for start in (jnp.zeros_like(x), far):
            z, stats = solve(DEQ(cell, TIGHT), x, start)
            assert stats.converged.all(), (splitting, stats)
            found.append(z)
    assert (found[0] > 1e-3).any() and (np.abs(found[0]) < 1e-12).any(), "the ReLU has both sides"
    np.testing.assert_allclose(apply(cell, found[0], x), found[0], atol=1e-8)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-8)


def test_gradients_against_unrolling_and_finite_differences(kind):
    cell, x = build(kind)
    graphdef, params = nnx.split(cell)

    def implicit(splitting, params, x):
        cell = nnx.merge(graphdef, params, copy=True)
        cell.splitting = splitting
        return jnp.sum(jnp.sin(DEQ(cell, TIGHT, Implicit(linear=Dense()))(x)))

    def unrolled(params, x):
        cell = nnx.merge(graphdef, params, copy=True)
        # Another map with the same fixed point: a step that is not the cell's own.
        step = lambda z, _: (jax.nn.relu(z - 0.03 * (z - cell.operator(z) - cell.inject(x))), None)  # noqa: E731
        return jnp.sum(jnp.sin(jax.lax.scan(step, jnp.zeros_like(x), length=1500)[0]))

    (value, want), direction, h = jax.jit(jax.value_and_grad(unrolled, (0, 1)))(params, x), jax.tree.map(jnp.cos, (params, x)), 1e-6
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(want))
    for splitting in SPLITTINGS:
        value_and_grad = jax.jit(jax.value_and_grad(functools.partial(implicit, splitting), (0, 1)))
        reached, got = value_and_grad(params, x)
        np.testing.assert_allclose(reached, value, atol=1e-8)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), got, want)
        up, down = (value_and_grad(*jax.tree.map(lambda p, d, s=s: p + s * d, (params, x), direction))[0] for s in (h, -h))
        slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(got), jax.tree.leaves(direction), strict=True))
        np.testing.assert_allclose((up - down) / (2 * h), slope, rtol=1e-4)


def test_the_default_step_of_forward_backward_contracts_as_promised(x64):
    graphdef, params = nnx.split(MonotoneDenseCell(8, m=0.5, skew=1.0, rngs=nnx.Rngs(0)))

    @jax.jit
    def step(params, symmetric, skew):
        cell = nnx.merge(graphdef, params, copy=True)
        cell.operator.A[...] *= symmetric
        cell.operator.B[...] *= skew
        return cell.step_size(), jnp.eye(8) - cell.operator.weight()

    for symmetric in (0.1, 1.0, 5.0):
        for skew in (0.0, 0.3, 3.0):
            alpha, F = step(params, symmetric, skew)
            assert np.linalg.norm(np.eye(8) - alpha * F, 2) ** 2 <= 1 - 0.5 * alpha


def test_a_step_that_is_too_large_shows_in_the_status():
    make, shape = CELLS["conv"]
    cell, x = make(alpha=2.0, rngs=nnx.Rngs(0)), jnp.ones(shape)
    cell.operator.B[...] *= 5
    assert (solve(DEQ(cell, Picard(max_steps=100)), x, jnp.zeros_like(x)).stats.status == Status.DIVERGED).all()


def test_leaves_of_half_precision():
    cell = MonotoneDenseCell(4, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 4), jnp.bfloat16)
    nnx.update(cell, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nnx.state(cell)))
    for cell.splitting in SPLITTINGS:
        assert jax.eval_shape(cell, x, x).dtype == jnp.bfloat16


def test_stays_monotone_and_solvable_in_training(x64):
    """Steps of gradient descent that are far too large move A and B at will, and the equilibrium stays."""
    cell = MonotoneCell(MonotoneDense(6, m=0.5, rngs=nnx.Rngs(0)), nnx.Linear(3, 6, rngs=nnx.Rngs(1)))
    x = jax.random.normal(jax.random.key(0), (8, 3))
    graphdef, params = nnx.split(cell)
    assert cell.initial(x).shape == (8, 6)

    @jax.jit
    def descend(params):
        def loss(params):
            return -jnp.sum(DEQ(nnx.merge(graphdef, params, copy=True), Picard(max_steps=100))(x) ** 2)

        return jax.tree.map(lambda p, g: p - 0.01 * g, params, jax.grad(loss)(params))

    for _ in range(4):
        params = descend(params)
    cell = nnx.merge(graphdef, params)
    W = np.asarray(cell.operator.weight())
    assert np.linalg.norm(W, 2) > 3
    assert np.linalg.eigvalsh(np.eye(6) - (W + W.T) / 2)[0] >= cell.operator.monotonicity() > 0.5 - 1e-5
    z = []
    for cell.splitting in SPLITTINGS:
        value, stats = solve(DEQ(cell, Picard(rtol=1e-9, max_steps=3000)), x, None)
        assert stats.converged.all()
        z.append(value)
    np.testing.assert_allclose(z[0], z[1], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha must be positive and finite, got 0.0"),
        ({"alpha": -1.0}, "alpha must be positive and finite"),
        ({"alpha": float("nan")}, "alpha must be positive and finite"),
        ({"alpha": float("inf")}, "alpha must be positive and finite"),
        ({"splitting": "douglas"}, "splitting must be forward_backward or peaceman_rachford, got 'douglas'"),
    ],
)
def test_what_it_cannot_take(options, message):
    # Past the runtime check of types, which users do not have.
    operator = MonotoneDense(3, rngs=nnx.Rngs(0))
    with pytest.raises((ValueError, TypeError), match=message):
        inspect.unwrap(MonotoneCell.__init__)(MonotoneCell.__new__(MonotoneCell), operator, operator, **options)
