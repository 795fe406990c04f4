"""What every gradient has to do, and what each of the inexact ones is; the table is in conftest.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import (
    Anderson,
    Broyden,
    Implicit,
    JacobianFree,
    Newton,
    Phantom,
    Picard,
    Reversible,
    ReversibleAdjoint,
    Shine,
    Status,
    TruncatedNeumann,
    Unrolled,
    fixed_point,
)

EXACT = (Implicit, TruncatedNeumann, Phantom, Unrolled, ReversibleAdjoint)


def solution(A, b, gradient, solver, **changes):
    options = {"rtol": 1e-12, "max_steps": 100, **changes}
    f = lambda z: jnp.tanh(z @ A.T + b)  # noqa: E731
    return fixed_point(f, jnp.zeros_like(b), solver=dataclasses.replace(solver, **options), gradient=gradient)


def unrolled(A, b):
    return jax.lax.scan(lambda z, _: (jnp.tanh(z @ A.T + b), None), jnp.zeros_like(b), length=300)[0]


def relative_error(got, want):
    return max(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in zip(got, want, strict=True))


@pytest.fixture
def problem(x64, matrix, normal):
    return matrix(0.7, n=6), normal(3, 6), normal(3, 6, seed=5)


def test_value_and_gradient(problem, gradient_and_solver):
    A, b, c = problem
    gradient, solver = gradient_and_solver

    def loss(A, b):
        value, stats = solution(A, b, gradient, solver, rtol=1e-7 if isinstance(solver, Reversible) else 1e-12)
        return jnp.sum(c * jnp.sin(value)), (value, stats)

    # Undoing steps costs digits, and the derivative of steps is as good as they have converged.
    looser = 1e5 if isinstance(solver, Reversible) else 1
    got, (value, stats) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(A, b)
    assert stats.converged.all()
    np.testing.assert_allclose(value, unrolled(A, b), atol=1e-10 * looser)
    want = jax.jit(jax.grad(lambda A, b: jnp.sum(c * jnp.sin(unrolled(A, b))), (0, 1)))(A, b)
    exact = isinstance(gradient, EXACT) or (isinstance(gradient, Shine) and gradient.refine)
    if exact:
        assert relative_error(got, want) <= 1e-8 * looser
    else:
        one, other = (jnp.concatenate([part.ravel() for part in parts]) for parts in (got, want))
        cosine = one @ other / jnp.linalg.norm(one) / jnp.linalg.norm(other)
        assert 0.75 < cosine < 0.9999  # a direction of descent, and not by being exact


# z -> rate z³ + c tanh z + b: contracts near zero for a small rate; overflows at once, or after a while, for a large one.
def test_a_failed_sample_contributes_exactly_nothing(gradient_and_solver):
    gradient, solver = gradient_and_solver
    rate = jnp.array([[0.01], [1e12], [0.02], [0.5]])
    b = jnp.linspace(0.1, 0.8, 8).reshape(4, 2) * jnp.array([[1.0], [1e9], [1.0], [9.0]])

    def loss(c, b, rate):
        f = lambda z: rate * z**3 + c * jnp.tanh(z) + b  # noqa: E731
        value, stats = fixed_point(f, jnp.zeros_like(b), solver=dataclasses.replace(solver, max_steps=60, rtol=1e-5), gradient=gradient)
        return jnp.sum(value**2), (value, stats)

    run = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (dc, db), (value, stats) = run(jnp.float32(0.3), b, rate)
    assert np.isfinite(value).all()
    assert stats.converged[jnp.array([0, 2])].all()
    failed = np.asarray(stats.failed)
    np.testing.assert_array_equal(db[failed], 0)
    assert (db[jnp.array([0, 2])] != 0).all()
    if isinstance(solver, Broyden):  # its line search takes back what would overflow
        assert np.isfinite(dc)
    else:
        assert list(failed) == [False, True, False, True]
        keep = jnp.array([0, 2])
        (dc_alone, db_alone), _ = run(jnp.float32(0.3), b[keep], rate[keep])
        np.testing.assert_allclose(dc, dc_alone, rtol=2e-5)
        np.testing.assert_allclose(db[keep], db_alone, rtol=2e-5)


def test_samples_are_independent_bitwise(matrix, normal, gradient_and_solver):
    gradient, solver = gradient_and_solver
    A, b = matrix(0.8).astype(jnp.float32), normal(4, 8).astype(jnp.float32)
    other = b.at[1:].multiply(jnp.array([[50.0], [0.0], [-3.0]]))

    @jax.jit
    def run(b):
        def total(b):
            value, stats = solution(A, b, gradient, solver, rtol=1e-4, max_steps=40)
            return jnp.sum(value[0] ** 2), (value[0], stats.steps[0])

        return jax.grad(total, has_aux=True)(b)

    (g1, aux1), (g2, aux2) = run(b), run(other)
    np.testing.assert_array_equal(g1[0], g2[0])
    np.testing.assert_array_equal(aux1[0], aux2[0])
    assert aux1[1] == aux2[1]


def test_a_traced_budget_and_its_gradient(problem, gradient_and_solver):
    A, b, c = problem
    gradient, solver = gradient_and_solver
    solver = dataclasses.replace(solver, rtol=1e-12, max_steps=40)

    @jax.jit
    def run(b, budget):
        def loss(b):
            f = lambda z: jnp.tanh(z @ A.T + b)  # noqa: E731
            value, stats = fixed_point(f, jnp.zeros_like(b), solver=solver, gradient=gradient, budget=budget)
            return jnp.sum(c * value), stats

        return jax.grad(loss, has_aux=True)(b)

    few, stats = run(b, 6)
    assert (stats.status == Status.STEP_LIMIT).all()
    assert (stats.steps == 6).all()
    assert (few != 0).all()
    many, _ = run(b, 40)
    assert relative_error([few], [many]) < 0.4
    none, stats = run(b, 0)
    assert (stats.steps == 0).all()
    assert np.isfinite(none).all()


def test_jacobian_free_is_one_product(problem):
    A, b, c = problem
    z = unrolled(A, b)
    want = jax.grad(lambda A: jnp.sum(c * jnp.tanh(z @ A.T + b)))(A)
    got = jax.jit(jax.grad(lambda A: jnp.sum(c * solution(A, b, JacobianFree(), Anderson()).value)))(A)
    np.testing.assert_allclose(got, want, atol=1e-10)


@pytest.mark.parametrize("damping", [None, 0.6])
def test_truncated_and_phantom_are_sums_of_powers(x64, matrix, normal, damping):
    """On an affine map, in both modes: Σ J^i, and for the damped steps Σ damping ((1 - damping) I + damping J)^i."""
    A, b, c = matrix(0.8, n=5), normal(2, 5), normal(2, 5, seed=5)
    if damping is None:
        gradient, series = TruncatedNeumann(steps=3), sum(np.linalg.matrix_power(A, i) for i in range(4))
    else:
        gradient = Phantom(steps=4, damping=damping)
        series = damping * sum(np.linalg.matrix_power((1 - damping) * np.eye(5) + damping * A, i) for i in range(4))

    def value(b):
        return fixed_point(lambda z: z @ A.T + b, jnp.zeros_like(b), solver=Broyden(rtol=1e-13), gradient=gradient).value

    np.testing.assert_allclose(jax.jit(jax.grad(lambda b: jnp.sum(c * value(b))))(b), c @ series, rtol=1e-9)
    np.testing.assert_allclose(jax.jit(lambda b: jax.jvp(value, (b,), (c,))[1])(b), c @ series.T, rtol=1e-9)


def test_shine_is_closer_than_the_identity_and_refinement_closer_still(x64, matrix, normal):
    A = jnp.stack([matrix(0.8, n=6, seed=seed) for seed in range(8)])
    b, c = normal(8, 6), normal(8, 6, seed=5)
    solver = Broyden(rtol=1e-10, memory=20)

    def errors(gradient):
        def value(b):
            f = lambda z: jnp.einsum("bij,bj->bi", A, z) + b  # noqa: E731
            return fixed_point(f, jnp.zeros_like(b), solver=solver, gradient=gradient).value

        def error(got, transpose):
            want = np.linalg.solve(np.eye(6) - (np.swapaxes(A, 1, 2) if transpose else A), c[:, :, None])[:, :, 0]
            return np.mean(np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1))

        both = jax.jit(lambda b: (jax.grad(lambda b: jnp.sum(c * value(b)))(b), jax.jvp(value, (b,), (c,))[1]))
        reverse, forward = both(b)
        return np.array([error(reverse, True), error(forward, False)])

    identity, shared, refined = (errors(gradient) for gradient in (JacobianFree(), Shine(), Shine(refine=6)))
    assert (shared < 0.9 * identity).all()
    assert (refined < 1e-9).all()


def test_shine_falls_back_per_sample(x64, matrix, normal):
    """A sample that starts at its solution has taught Broyden nothing: it gets the gradient of JacobianFree."""
    A, b, c = matrix(0.8, n=6), normal(2, 6), normal(2, 6, seed=3)
    z0 = jnp.stack([jnp.asarray(np.linalg.solve(np.eye(6) - A, b[0])), jnp.zeros(6)])

    def gradient(kind):
        solve = lambda b: fixed_point(lambda z: z @ A.T + b, z0, solver=Broyden(rtol=1e-10), gradient=kind).value  # noqa: E731
        return jax.jit(jax.grad(lambda b: jnp.sum(c * solve(b))))(b)

    shared, plain = gradient(Shine()), gradient(JacobianFree())
    np.testing.assert_allclose(shared[0], plain[0], rtol=1e-12)


@pytest.mark.parametrize("damping", [0.3, 0.7])
def test_the_reversible_adjoint_is_the_derivative_of_the_steps(problem, damping):
    A, b, c = problem
    solver = Reversible(damping=damping)

    def gradient(kind):
        def loss(A, b, z0):
            f = lambda z: jnp.tanh(z @ A.T + b)  # noqa: E731
            solver_ = dataclasses.replace(solver, rtol=1e-3, max_steps=9)
            return jnp.sum(c * fixed_point(f, z0, solver=solver_, gradient=kind).value)

        return jax.jit(jax.grad(loss, (0, 1, 2)))(A, b, 0.1 * b)

    got, want = gradient(ReversibleAdjoint()), gradient(Unrolled())
    assert relative_error(got, want) < 1e-8


def temporaries(gradient, solver, steps, A, b):
    loss = lambda A, b: solution(A, b, gradient, solver, max_steps=steps).value.sum()  # noqa: E731
    return jax.jit(jax.grad(loss, (0, 1))).lower(A, b).compile().memory_analysis().temp_size_in_bytes


def test_memory(x64, matrix, normal):
    A, b = matrix(0.9, n=32), normal(16, 32)
    for gradient, solver in [(JacobianFree(), Picard()), (Phantom(), Picard()), (ReversibleAdjoint(), Reversible()), (Shine(), Broyden())]:
        assert temporaries(gradient, solver, 10, A, b) == temporaries(gradient, solver, 100, A, b)
    tape, every, root = (temporaries(Unrolled(checkpoint=kind), Picard(), 100, A, b) for kind in ("none", "every", "sqrt"))
    assert tape > temporaries(Unrolled(), Picard(), 10, A, b) * 5
    assert root < every / 2 < tape / 2


@pytest.mark.parametrize(
    ("gradient", "solver", "message"),
    [
        (Shine(), Anderson(), "Shine works with the solver Broyden, got Anderson"),
        (ReversibleAdjoint(), Picard(), "ReversibleAdjoint works with the solver Reversible, got Picard"),
        (Unrolled(), Newton(), "Unrolled differentiates the solver's steps, and those of Newton do not"),
    ],
)
def test_pairs_that_cannot_work(gradient, solver, message):
    with pytest.raises(ValueError, match=message):
        fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=solver, gradient=gradient)


@pytest.mark.parametrize("kind", [TruncatedNeumann, Phantom])
def test_arguments_out_of_range(kind):
    with pytest.raises(ValueError, match="steps must be >= 1"):
        kind(steps=0)
