"""The derivative of a solution, against the dense formula, finite differences and unrolling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from deqflow.implicit import GMRES, Anderson, Broyden, Implicit, Newton, Picard, Solver, Status, fixed_point

TIGHT = Implicit(linear=GMRES(rtol=1e-13, restart=30, max_steps=300))


def tanh_solution(A, b, *, solver: Solver = Anderson(rtol=1e-13, max_steps=300), gradient=TIGHT, **options):
    return fixed_point(lambda z: jnp.tanh(z @ A.T + b), jnp.zeros_like(b), solver=solver, gradient=gradient, **options)


def unrolled(A, b):
    z, _ = jax.lax.scan(lambda z, _: (jnp.tanh(z @ A.T + b), None), jnp.zeros_like(b), length=300)
    return z


@pytest.fixture
def problem(x64, matrix, normal):
    return matrix(0.8, n=4), normal(3, 4)


def loss_of(solution):
    weights = jnp.asarray([1.0, -2.0, 0.5, 3.0])
    return lambda A, b: jnp.sum(jnp.sin(solution(A, b)) * weights)


implicit = loss_of(lambda A, b: tanh_solution(A, b).value)
reference = loss_of(unrolled)


@pytest.mark.parametrize("radius", [0.9, 1.5])
@pytest.mark.parametrize("solver", [Anderson(history=16), Broyden(memory=40), Newton()], ids=["anderson", "broyden", "newton"])
def test_against_the_dense_solution(x64, matrix, normal, radius, solver):
    A, b, c = matrix(radius, n=16), normal(4, 16), normal(4, 16, seed=3)
    solver = dataclasses.replace(solver, rtol=1e-13, max_steps=300)

    def loss(A, b):
        return jnp.sum(c * fixed_point(lambda z: z @ A.T + b, jnp.zeros_like(b), solver=solver, gradient=TIGHT).value)

    dA, db = jax.jit(jax.grad(loss, (0, 1)))(A, b)
    z = np.linalg.solve(np.eye(16) - A, b.T).T
    w = np.linalg.solve((np.eye(16) - A).T, c.T).T
    assert np.linalg.norm(db - w) <= 1e-10 * np.linalg.norm(w)
    assert np.linalg.norm(dA - w.T @ z) <= 1e-10 * np.linalg.norm(w.T @ z)


def test_float32_is_as_good_as_its_condition_allows(matrix, normal):
    A = matrix(0.9, n=16)
    c = normal(1, 16, seed=3)
    condition = np.linalg.cond(np.eye(16) - A)

    def loss(b):
        f = lambda z: z @ A.T.astype(jnp.float32) + b  # noqa: E731
        return jnp.sum(c.astype(jnp.float32) * fixed_point(f, jnp.zeros_like(b), solver=Anderson(rtol=1e-6, max_steps=200)).value)

    w = np.linalg.solve((np.eye(16) - np.asarray(A, np.float64)).T, np.asarray(c).T).T
    error = np.linalg.norm(jax.jit(jax.grad(loss))(normal(1, 16).astype(jnp.float32)) - w) / np.linalg.norm(w)
    assert error <= 10 * condition * np.finfo(np.float32).eps


def test_finite_differences_in_both_modes(problem):
    check_grads(jax.jit(implicit), problem, order=1, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


TRANSFORMS = {
    "grad": lambda f: jax.grad(f, (0, 1)),
    "jvp": lambda f: lambda A, b: jax.jvp(f, (A, b), (jnp.cos(A), jnp.sin(b))),
    "hessian": lambda f: jax.hessian(f, (0, 1)),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(f, 1), 0),
    "jit": lambda f: jax.jit(jax.grad(f, (0, 1))),
    "vmap over both": lambda f: lambda A, b: jax.vmap(jax.grad(f, (0, 1)))(jnp.stack([A, A / 2]), jnp.stack([b, 2 * b])),
    "vmap over one": lambda f: lambda A, b: jax.vmap(jax.grad(f, (0, 1)), (None, 0))(A, jnp.stack([b, 2 * b])),
    "grad of vmap": lambda f: jax.grad(lambda A, b: jax.vmap(f, (None, 0))(A, jnp.stack([b, 2 * b])).sum(), (0, 1)),
    "remat": lambda f: jax.grad(jax.checkpoint(f), (0, 1)),
    "scan": lambda f: jax.grad(lambda A, b: jax.lax.scan(lambda c, s: (c + f(A, s * b), c), 0.0, jnp.arange(1.0, 4.0))[0], (0, 1)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transformations_agree_with_unrolling(problem, transform):
    got, want = jax.jit(transform(implicit))(*problem), jax.jit(transform(reference))(*problem)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), got, want)


def test_nested_solves_differentiate(problem):
    A, b = problem

    def around(inner, A, b):
        return lambda y: 0.3 * jnp.cos(y) * inner(A, b + 0.1 * y)

    def implicitly(A, b):
        f = around(lambda A, b: tanh_solution(A, b).value, A, b)
        return jnp.sum(fixed_point(f, jnp.zeros_like(b), solver=Picard(rtol=1e-13, max_steps=300), gradient=TIGHT).value)

    def by_unrolling(A, b):
        f = around(unrolled, A, b)
        return jnp.sum(jax.lax.scan(lambda y, _: (f(y), None), jnp.zeros_like(b), length=60)[0])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10),
        jax.jit(jax.grad(implicitly, (0, 1)))(A, b),
        jax.jit(jax.grad(by_unrolling, (0, 1)))(A, b),
    )


def test_the_initial_guess_has_no_gradient(problem):
    A, b = problem
    gradient = jax.grad(lambda z0: fixed_point(lambda z: jnp.tanh(z @ A.T + b), z0, gradient=TIGHT).value.sum())(b)
    np.testing.assert_array_equal(gradient, 0)


def test_the_backward_pass_needs_the_transpose(problem):
    """A formula seen in tutorials, `solve(I - J, g)`, is wrong by more than half on this problem; ours is `solve((I - J)ᵀ, g)`."""
    A, b = problem
    z = tanh_solution(A, b).value[0]
    J = jax.jacobian(lambda z: jnp.tanh(A @ z + b[0]))(z)
    c = jnp.arange(1.0, 5.0)
    slope = 1 - z**2
    ours = jax.jit(jax.grad(lambda b: tanh_solution(A, b).value[0] @ c))(b)[0]
    np.testing.assert_allclose(ours, slope * np.linalg.solve((np.eye(4) - J).T, c), rtol=1e-9)
    wrong = slope * np.linalg.solve(np.eye(4) - J, c)
    assert np.linalg.norm(wrong - ours) > 0.1 * np.linalg.norm(ours)


# z -> rate z³ + b: contracts near zero for a small rate, overflows for a large one.
def cubic(rate, b, c, *, solver):
    def f(z):
        return rate * z**3 + c * jnp.tanh(z) + b

    return fixed_point(f, jnp.zeros_like(b), solver=solver)


@pytest.mark.parametrize("solver", [Picard(max_steps=60, rtol=1e-5), Anderson(max_steps=60, rtol=1e-5)], ids=["picard", "anderson"])
def test_a_diverged_sample_contributes_exactly_nothing(solver):
    rate = jnp.array([[0.01], [1e12], [0.02]])
    b = jnp.linspace(0.1, 0.5, 6).reshape(3, 2) * jnp.array([[1.0], [1e9], [1.0]])

    def loss(c, b, rate):
        value, stats = cubic(rate, b, c, solver=solver)
        return jnp.sum(value**2), stats

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, stats), (dc, db) = gradient(jnp.float32(0.3), b, rate)
    assert list(stats.status) == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    np.testing.assert_array_equal(db[1], 0)
    keep = jnp.array([0, 2])
    _, alone = gradient(jnp.float32(0.3), b[keep], rate[keep])
    np.testing.assert_allclose(dc, alone[0], rtol=1e-6)
    np.testing.assert_allclose(db[keep], alone[1], rtol=1e-6)
    tangent = jax.jit(jax.jacfwd(lambda c: cubic(rate, b, c, solver=solver).value))(jnp.float32(0.3))
    np.testing.assert_array_equal(tangent[1], 0)
    assert np.isfinite(tangent).all()


def test_a_sample_at_its_step_limit_keeps_its_gradient(problem):
    A, b = problem
    solver = Picard(rtol=1e-13, max_steps=6)
    gradient = jax.jit(jax.grad(lambda b: tanh_solution(A, b, solver=solver).value.sum()))(b)
    exact = jax.grad(lambda b: unrolled(A, b).sum())(b)
    assert (tanh_solution(A, b, solver=solver).stats.status == Status.STEP_LIMIT).all()
    assert np.linalg.norm(gradient - exact) < 0.3 * np.linalg.norm(exact)


def test_memory_does_not_grow_with_the_steps(x64, matrix, normal):
    A, b = matrix(0.9, n=32), normal(16, 32)

    def temporaries(steps):
        solver = Picard(max_steps=steps)
        loss = lambda A, b: tanh_solution(A, b, solver=solver).value.sum()  # noqa: E731
        analysis = jax.jit(jax.grad(loss, (0, 1))).lower(A, b).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporaries(10) == temporaries(1000)


def test_products_in_the_function_are_precise_by_default(matrix):
    A, b = matrix(0.5), jnp.ones((2, 8))

    def text(**options):
        loss = lambda b: fixed_point(lambda z: jnp.tanh(z @ A.astype(b.dtype)) + b, jnp.zeros_like(b), **options).value.sum()  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(b).as_text()

    def imprecise(**options):
        lines = [line for line in text(**options).splitlines() if "dot_general" in line]
        assert lines
        return [line for line in lines if "HIGHEST" not in line]

    assert not imprecise()
    assert imprecise(solver=Anderson(precision="default"))
    assert imprecise(gradient=Implicit(precision="default"))


def test_an_argument_out_of_range():
    with pytest.raises(ValueError, match="restart"):
        dataclasses.replace(GMRES(), restart=0)
