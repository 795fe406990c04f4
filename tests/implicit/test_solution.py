import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

from deqflow.implicit import ConvergenceError, Picard, fixed_point


def solve(x, **options):
    return fixed_point(lambda z: 0.5 * z + x, jnp.zeros_like(x), solver=Picard(max_steps=20), **options)


def test_check_returns_the_value_of_a_converged_solve():
    solution = solve(jnp.ones((2, 3)))
    assert solution.check() is solution.value


def test_check_names_counts_and_remedies():
    solution = fixed_point(lambda z: jnp.array([[0.5], [0.99], [jnp.nan]]) * z + 1, jnp.zeros((3, 1)), solver=Picard(max_steps=20))
    with pytest.raises(ConvergenceError, match=r"1 of 3 samples.*STEP_LIMIT.*raise max_steps.*1 of 3 samples.*DIVERGED.*damp"):
        solution.check()


def test_check_inside_jit_works_through_checkify():
    def f(rate):
        return fixed_point(lambda z: rate * z + 1, jnp.zeros((1, 1)), solver=Picard(max_steps=20)).check()

    checked = jax.jit(checkify.checkify(f))
    checked(0.5)[0].throw()
    with pytest.raises(checkify.JaxRuntimeError, match="did not converge"):
        checked(0.99)[0].throw()
    jax.jit(f)(0.99)  # without checkify it does nothing


def test_a_solution_unpacks_and_is_a_pytree():
    solution = solve(jnp.ones((2, 3)), trace=True)
    value, stats = solution
    assert value is solution.value
    assert stats is solution.stats
    assert jax.tree.map(jnp.shape, solution).stats.trace == (20, 2)


def test_an_unbatched_solve_has_scalar_statistics():
    stats = solve(jnp.ones((2, 3)), batched=False, trace=True).stats
    assert stats.steps.shape == stats.residual.shape == stats.status.shape == ()
    assert stats.trace is not None
    assert stats.trace.shape == (20,)
