"""What every solver has to do; the table is in conftest.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import Anderson, Broyden, Newton, Picard, Status, fixed_point


def with_(solver, **changes):
    return dataclasses.replace(solver, **{"rtol": 1e-8, "max_steps": 200, **changes})


def test_finds_the_solution_of_a_linear_contraction(x64, solver, matrix, normal):
    A, b = matrix(0.8), normal(3, 8)
    value, stats = fixed_point(lambda z: z @ A.T + b, jnp.zeros((3, 8)), solver=with_(solver))
    np.testing.assert_allclose(value, np.linalg.solve(np.eye(8) - A, b.T).T, rtol=1e-6)
    assert (stats.status == Status.CONVERGED).all()
    assert (stats.steps <= stats.evaluations).all()


def test_the_reported_residual_is_that_of_the_returned_value(x64, solver, matrix, normal):
    A, b = matrix(0.9), normal(3, 8)

    def f(z):
        return jnp.tanh(z @ A.T + b)

    solve = jax.jit(lambda budget: fixed_point(f, normal(3, 8, seed=2), solver=with_(solver), budget=budget))
    for budget in (1, 4, 200):
        value, stats = solve(budget)
        residual = np.linalg.norm(f(value) - value, axis=1)
        np.testing.assert_allclose(stats.residual, residual, rtol=1e-3, atol=1e-14)
        np.testing.assert_allclose(stats.relative_residual, residual / np.linalg.norm(f(value), axis=1), rtol=1e-3, atol=1e-14)


def test_tolerances_are_absolute_and_relative(x64, solver, matrix, normal):
    A, b = matrix(0.8), 1000.0 * normal(1, 8)

    def steps_and_residuals(**tolerances):
        stats = fixed_point(lambda z: z @ A.T + b, jnp.zeros((1, 8)), solver=with_(solver, **tolerances)).stats
        return stats.steps[0], stats.residual[0], stats.relative_residual[0]

    loose, residual, _ = steps_and_residuals(rtol=0.0, atol=1.0)
    assert residual <= 1.0
    tight, _, relative = steps_and_residuals(rtol=1e-6)
    assert relative <= 1e-6
    assert tight >= loose


def test_starting_at_the_solution_takes_one_evaluation(solver):
    stats = fixed_point(lambda z: 0.5 * z + 1, jnp.full((2, 3), 2.0), solver=solver).stats
    assert (stats.steps == 1).all()
    assert (stats.residual == 0).all()
    assert (stats.relative_residual == 0).all()


def test_pytrees_of_several_types_and_unbatched_problems(solver, normal):
    target = {"a": normal(4, 2, 3).astype(jnp.float32), "b": normal(4).astype(jnp.float32)}

    def f(z):
        return {"a": 0.5 * z["a"] + target["a"], "b": 0.1 * z["a"].mean((1, 2)) + target["b"]}

    value = fixed_point(f, jax.tree.map(jnp.zeros_like, target), solver=with_(solver, rtol=1e-6)).check()
    np.testing.assert_allclose(value["a"], 2 * target["a"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value["b"], 0.2 * target["a"].mean((1, 2)) + target["b"], rtol=1e-5, atol=1e-5)
    single = fixed_point(lambda z: 0.5 * z + 1, 0.0, solver=with_(solver, rtol=1e-6), batched=False).check()
    np.testing.assert_allclose(single, 2.0, rtol=1e-5)


def test_samples_are_independent_bitwise(solver, matrix, normal):
    A, b, z0 = matrix(0.9).astype(jnp.float32), normal(5, 8).astype(jnp.float32), normal(5, 8, seed=2).astype(jnp.float32)
    other = b.at[1:].multiply(jnp.array([[100.0], [0.0], [jnp.inf], [-3.0]]))

    @jax.jit
    def solve(b, z0):
        def total(b):
            value, stats = fixed_point(lambda z: jnp.tanh(z @ A.T) * b, z0, solver=with_(solver, rtol=1e-5))
            return jnp.sum(value[0] ** 2), (value[0], stats)

        (_, (value, stats)), gradient = jax.value_and_grad(total, has_aux=True)(b)
        return value, stats.steps[0], stats.status[0], stats.residual[0], gradient[0]

    first, second = solve(b, z0), solve(other, z0.at[1:].set(7.0))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


def test_alone_is_as_in_a_batch(x64, solver, matrix, normal):
    A, b = matrix(0.9), normal(4, 8)

    def solve(b):
        return fixed_point(lambda z: jnp.tanh(z @ A.T + b), jnp.zeros_like(b), solver=with_(solver)).value

    np.testing.assert_allclose(solve(b)[2:3], solve(b[2:3]), atol=1e-10)


def test_the_budget_is_traced_and_capped(solver):
    traces = []

    @jax.jit
    def solve(budget):
        traces.append(1)
        return fixed_point(lambda z: 0.99 * z + 1, jnp.zeros((2, 3)), solver=Picard(max_steps=7), budget=budget).stats

    assert [int(solve(n).steps[0]) for n in (0, 1, 5, 7, 100)] == [0, 1, 5, 7, 7]
    assert len(traces) == 1
    assert (solve(5).status == Status.STEP_LIMIT).all()
    none = fixed_point(lambda z: 0.5 * z, jnp.ones((2, 3)), solver=solver, budget=0)
    np.testing.assert_array_equal(none.value, jnp.ones((2, 3)))
    assert np.isinf(none.stats.residual).all()


def test_statuses_are_per_sample(solver):
    # A contraction, one that is too slow, one that overflows, one that is never finite, and a jump without any fixed point.
    def f(z):
        jump = jnp.where(z[4] > 0, -1.0, 1.0)
        return jnp.stack([0.5 * z[0] + 1, 0.9999 * jnp.sin(z[1]) + 0.1, 1e9 * z[2] ** 3 + 1e9, z[3] * jnp.nan, jump])

    value, stats = fixed_point(f, jnp.full((5, 1), 0.1), solver=with_(solver, rtol=1e-6, max_steps=400), budget=jnp.array(400))
    assert [Status(int(s)) for s in stats.status[jnp.array([0, 3, 4])]] == [Status.CONVERGED, Status.DIVERGED, Status.STAGNATED]
    # A line search takes back what would overflow, and then gets nowhere, or even arrives.
    searches = isinstance(solver, (Broyden, Newton))
    assert Status(int(stats.status[2])) in ({Status.STAGNATED, Status.STEP_LIMIT, Status.CONVERGED} if searches else {Status.DIVERGED})
    assert stats.steps[4] < 400
    assert np.isfinite(value).all()
    slow = fixed_point(f, jnp.full((5, 1), 0.1), solver=with_(solver, rtol=1e-6, max_steps=2)).stats
    assert slow.status[1] == Status.STEP_LIMIT


def test_the_best_iterate_is_returned(solver):
    # Leaves the fixed point at 0.01 for good, in ever larger steps.
    def f(z):
        return z + 0.01 - 3.0 * jnp.sign(z - 0.01) * jnp.abs(z - 0.01) ** 0.1

    solution = fixed_point(f, jnp.zeros((1, 1)), solver=with_(solver, rtol=1e-6, max_steps=15), trace=True)
    trace = np.asarray(solution.stats.trace)
    np.testing.assert_allclose(solution.stats.relative_residual[0], np.nanmin(trace[:, 0]), rtol=1e-5)


def test_where_the_function_vanishes_is_not_best():
    """Plain iteration alternates between 0, where `f` is 1, and 1, where it is 0 and no relative tolerance can be met."""
    value, stats = fixed_point(lambda z: jax.nn.relu(1 - 3 * z), jnp.zeros((1, 1)), solver=Picard(max_steps=10))
    assert value[0, 0] == 0
    assert stats.relative_residual[0] == 1


def test_zero_tolerance_ends_by_itself(solver, normal):
    b = normal(2, 5).astype(jnp.float32)
    stats = fixed_point(lambda z: jnp.cos(z) * 0.5 + b, jnp.zeros((2, 5)), solver=with_(solver, rtol=0.0, max_steps=2000)).stats
    assert set(np.asarray(stats.status)) <= {Status.CONVERGED, Status.STAGNATED}
    assert (stats.steps < 2000).all()
    assert (stats.relative_residual < 1e-5).all()


def test_an_empty_batch(solver):
    value, stats = fixed_point(lambda z: 0.5 * z, jnp.zeros((0, 3)), solver=solver)
    assert value.shape == (0, 3)
    assert stats.status.shape == (0,)


def test_the_trace_holds_every_residual_until_the_sample_stops(x64, solver):
    rate = jnp.array([[0.5], [0.9]])
    stats = fixed_point(lambda z: rate * jnp.sin(z) + 1, jnp.zeros((2, 1)), solver=with_(solver), trace=True).stats
    assert stats.trace is not None
    for sample in range(2):
        column, steps = np.asarray(stats.trace[:, sample]), int(stats.steps[sample])
        assert np.isfinite(column[:steps]).all()
        assert np.isnan(column[steps:]).all()
        np.testing.assert_allclose(column[steps - 1], stats.relative_residual[sample])


def test_the_residual_is_looked_at_every_so_many_steps(x64, solver, matrix, normal):
    A, b = matrix(0.8), normal(3, 8)
    f = lambda z: jnp.tanh(z @ A.T + b)  # noqa: E731
    solve = lambda **changes: fixed_point(f, jnp.zeros((3, 8)), solver=with_(solver, **changes), trace=True)  # noqa: E731
    every, third = solve(), solve(check_every=3)
    np.testing.assert_array_equal(third.stats.steps, -(-every.stats.steps // 3) * 3)
    np.testing.assert_allclose(third.value, every.value, rtol=1e-6, atol=1e-7)
    # What is looked at is the same iterate, and the last look comes when the budget ends.
    first = int(every.stats.steps.min())
    looked = np.asarray(third.stats.trace)[:first]
    np.testing.assert_allclose(looked[2::3], np.asarray(every.stats.trace)[:first][2::3], rtol=1e-3)
    assert np.isnan(np.delete(looked, slice(2, None, 3), axis=0)).all()
    short = fixed_point(f, jnp.zeros((3, 8)), solver=with_(solver, check_every=3), budget=4)
    assert (short.stats.steps == 4).all()
    np.testing.assert_allclose(short.stats.residual, np.linalg.norm(f(short.value) - short.value, axis=1), rtol=1e-6)


@pytest.mark.parametrize("bad", [{"damping": 0.0}, {"damping": 1.5}, {"rtol": -1.0}, {"max_steps": 0}, {"atol": -1e-3}])
@pytest.mark.parametrize("kind", [Picard, Anderson])
def test_arguments_out_of_range(kind, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)
