"""Problems with known answers, and questions without one: roots, fixed points and minima, and their derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from deqflow.deq import DEQ
from deqflow.implicit import (
    Anderson,
    ConvergenceError,
    Dense,
    Implicit,
    Newton,
    Picard,
    ReversibleAdjoint,
    Shine,
    Status,
    Unrolled,
    argmin,
    fixed_point,
    implicit_function,
    root,
)

# What compiles fastest: these problems are small, and the matrix-free ways are tested elsewhere.
EXACT = Implicit(linear=Dense())
NEWTON = {"solver": Newton(rtol=1e-13, linear=Dense()), "gradient": EXACT}


# --- The square root ---


def test_the_square_root_by_newton_steps(x64):
    square_root = lambda x: root(lambda y: y**2 - x, jnp.ones_like(x), **NEWTON)  # noqa: E731
    x = jnp.array([4.0, 9.0])
    np.testing.assert_allclose(square_root(x).check(), [2.0, 3.0], rtol=1e-12)
    gradient = jax.jit(jax.grad(lambda x: square_root(x).value.sum()))(x)
    np.testing.assert_allclose(gradient, 0.5 / np.sqrt([4.0, 9.0]), rtol=1e-12)


def test_ten_steps_of_heron_suffice_for_small_numbers_and_say_so_for_a_large_one(x64):
    def heron(x):
        return fixed_point(lambda z: 0.5 * (z + x / z), jnp.ones_like(x), solver=Picard(max_steps=10), gradient=EXACT)

    solution = heron(jnp.array([4.0, 1e6, 9.0]))
    assert list(solution.stats.status) == [Status.CONVERGED, Status.STEP_LIMIT, Status.CONVERGED]
    assert solution.stats.steps[1] == 10
    np.testing.assert_allclose(solution.value[jnp.array([0, 2])], [2.0, 3.0], rtol=1e-4)
    assert solution.value[1] > 1500  # far from 1000, as it began at 500 000 and is halved in every step
    with pytest.raises(ConvergenceError, match=r"1 of 3 samples: the step budget ran out.* \(STEP_LIMIT\); raise max_steps"):
        solution.check()
    heron(jnp.array([4.0, 9.0])).check()
    # The theorem's derivative at the iterate that was reached, which is no solution for the large number.
    x, z = jnp.array([4.0, 1e6, 9.0]), solution.value
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: heron(x).value.sum()))(x), z / (z**2 + x), rtol=1e-10)


# --- x = cos x ---

DOTTIE = 0.7390851332151607


@pytest.mark.parametrize("start", [0.0, 0.7])
def test_the_dottie_number_is_found_as_the_error_bounds_predict(x64, start):
    tolerance = 1e-10
    value, stats = fixed_point(jnp.cos, jnp.array([start]), solver=Picard(atol=tolerance, rtol=0.0, max_steps=200))
    assert stats.converged[0]
    # All iterates lie between the first two, and the derivative of the cosine there between the sines of these.
    first = abs(math.cos(start) - start)
    smallest, largest = sorted((math.sin(start), math.sin(math.cos(start))))
    bound = float(stats.residual[0]) / (1 - largest)
    error = abs(float(value[0]) - DOTTIE)
    assert error <= bound <= 10 * tolerance
    # The residual shrinks by a factor between the two in every step, of which the first only looks at the guess.
    assert stats.steps[0] <= math.log(tolerance / first) / math.log(largest) + 2
    if smallest > 0:
        assert stats.steps[0] >= math.log(tolerance / first) / math.log(smallest) + 1


def test_the_gradient_of_the_scaled_dottie_number(x64):
    a = jnp.array([0.5, 1.0, 3.0])  # with 3, no contraction any more

    def solution(a):
        return fixed_point(lambda x: a * jnp.cos(x), jnp.ones_like(a), **NEWTON).value

    x = solution(a)
    np.testing.assert_allclose(x, a * jnp.cos(x), rtol=1e-12)
    assert abs(x[1] - DOTTIE) < 1e-12
    want = np.diag(np.cos(x) / (1 + a * np.sin(x)))
    np.testing.assert_allclose(jax.jit(jax.jacrev(solution))(a), want, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(solution))(a), want, rtol=1e-10, atol=1e-14)


# --- The square of a complex number, as a map of the plane ---


def test_the_local_inverse_of_the_complex_square_and_two_of_its_derivatives(x64):
    def equation(y, x):
        return jnp.array([y[0] ** 2 - y[1] ** 2, 2 * y[0] * y[1]]) - x

    inverse = implicit_function(equation, jnp.array([0.9, 1.2]), batched=False, **NEWTON)
    x = jnp.array([0.0, 2.0])
    np.testing.assert_allclose(inverse(x), [1.0, 1.0], rtol=1e-12)
    want = np.linalg.inv([[2.0, -2.0], [2.0, 2.0]])
    forward, reverse = jax.jit(jax.jacfwd(inverse)), jax.jit(jax.jacrev(inverse))
    np.testing.assert_allclose(forward(x), want, rtol=1e-10)
    np.testing.assert_allclose(reverse(x), want, rtol=1e-10)
    h = 1e-5
    differences = np.stack([(reverse(x + h * e) - reverse(x - h * e)) / (2 * h) for e in np.eye(2)], axis=-1)
    assert np.abs(differences).max() > 0.05
    np.testing.assert_allclose(jax.jit(jax.jacfwd(jax.jacrev(inverse)))(x), differences, atol=1e-8)
    np.testing.assert_allclose(jax.jit(jax.jacrev(jax.jacrev(inverse)))(x), differences, atol=1e-8)


# --- Minima ---


def test_hypergradients_of_ridge_regression_against_the_closed_form(x64, normal):
    X, t = normal(6, 3), normal(6, seed=2)

    def ridge(penalty, X):
        objective = lambda w: 0.5 * jnp.sum((X @ w - t) ** 2) + 0.5 * penalty * jnp.sum(w**2)  # noqa: E731
        return argmin(objective, jnp.zeros(3), batched=False, **NEWTON).value

    def closed_form(penalty, X):
        return jnp.linalg.solve(X.T @ X + penalty * jnp.eye(3), X.T @ t)

    validation = lambda w: jnp.sum((normal(4, 3, seed=3) @ w - 1) ** 2)  # noqa: E731
    for find in (ridge, closed_form):
        assert find(0.7, X).shape == (3,)
    np.testing.assert_allclose(ridge(0.7, X), closed_form(0.7, X), rtol=1e-10)
    got, want = (jax.jit(jax.grad(lambda p, X, find=find: validation(find(p, X)), (0, 1)))(0.7, X) for find in (ridge, closed_form))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-9)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-9)
    w = closed_form(0.7, X)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(ridge))(0.7, X), -np.linalg.solve(X.T @ X + 0.7 * np.eye(3), w), rtol=1e-9)


def test_hypergradients_of_logistic_regression_against_finite_differences(x64, normal):
    X, labels = normal(8, 3), jnp.sign(normal(8, seed=2))

    def fitted(penalty, weights):
        def objective(w):
            return jnp.sum(weights * jax.nn.softplus(-labels * (X @ w["slope"] + w["offset"]))) + penalty * jnp.sum(w["slope"] ** 2)

        w = argmin(objective, {"slope": jnp.zeros(3), "offset": jnp.zeros(())}, batched=False, **NEWTON).value
        return jnp.concatenate([w["slope"], w["offset"][None]])

    check_grads(jax.jit(fitted), (0.4, jnp.linspace(0.5, 1.5, 8)), order=1, modes=("fwd", "rev"), atol=1e-6, rtol=1e-6)


def test_one_objective_per_sample(x64, normal):
    def solution(b):
        objective = lambda y: jnp.sum(0.25 * y**4 + 0.5 * y**2 - b * y, axis=1)  # noqa: E731
        return argmin(objective, jnp.zeros_like(b), **NEWTON)

    b = normal(3, 2)
    y, stats = solution(b)
    assert stats.status.shape == (3,) and stats.converged.all()
    np.testing.assert_allclose(y**3 + y, b, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda b: solution(b).value.sum()))(b), 1 / (3 * y**2 + 1), rtol=1e-10)


@pytest.mark.parametrize(
    ("objective", "batched", "message"),
    [
        (lambda y: jnp.sum(y**2), True, r"one number per sample, of shape \(2,\), got shape \(\)"),
        (lambda y: jnp.sum(y**2, axis=1, keepdims=True), True, r"\(2, 1\)"),
        (lambda y: jnp.sum(y**2, axis=1), False, r"shape \(\), got shape \(2,\)"),
    ],
    ids=["a total", "an axis too many", "a batch"],
)
def test_an_objective_of_the_wrong_shape(objective, batched, message):
    with pytest.raises(ValueError, match=message):
        argmin(objective, jnp.ones((2, 3)), batched=batched)


# --- Auxiliary values, of a y whose solution is √a ---

WITH_AUX = {
    "fixed_point": (fixed_point, lambda a: lambda y: (0.5 * (y + a / y), {"product": a * y})),
    "root": (root, lambda a: lambda y: (y**2 - a, {"product": a * y})),
    "argmin": (argmin, lambda a: lambda y: ((y**3 / 3 - a * y)[:, 0], {"product": a * y})),
}


@pytest.mark.parametrize(("solve", "pose"), WITH_AUX.values(), ids=WITH_AUX.keys())
def test_the_auxiliary_value_is_that_at_the_solution_and_differentiates(x64, solve, pose):
    a = jnp.array([[4.0], [9.0]])

    def solution(a):
        return solve(pose(a), jnp.ones_like(a), has_aux=True, **NEWTON)

    np.testing.assert_allclose(solution(a).check(), [[2.0], [3.0]], rtol=1e-10)
    np.testing.assert_allclose(solution(a).aux["product"], [[8.0], [27.0]], rtol=1e-10)
    gradient = jax.jit(jax.grad(lambda a: solution(a).aux["product"].sum()))(a)  # of a √a, by itself and through the solution
    np.testing.assert_allclose(gradient, 1.5 * np.sqrt(a), rtol=1e-10)
    value, stats = solution(a)
    assert value.shape == a.shape and stats.converged.all()


# --- One linear problem posed in three ways, whose plain iteration is z -> A z + b with a symmetric A ---

QUESTIONS = {
    "fixed_point": (fixed_point, lambda A, b: lambda z: z @ A + b),
    "root": (root, lambda A, b: lambda z: z @ A + b - z),
    "argmin": (argmin, lambda A, b: lambda z: jnp.sum(0.5 * z * (z - z @ A) - b * z, axis=1)),
}
A, B = 0.5 * np.array([[0.6, 0.8], [0.8, -0.6]]), np.array([1.0, -2.0])


@pytest.fixture(params=QUESTIONS.values(), ids=QUESTIONS.keys())
def question(request):
    """The entry point, and what makes its function of `A` and `b`."""
    return request.param


def test_three_ways_to_pose_a_problem_take_the_same_steps(x64, question):
    solve, pose = question
    value, stats = solve(pose(A, B), jnp.zeros((3, 2)), solver=Picard(rtol=1e-4))
    np.testing.assert_allclose(value, np.tile(np.linalg.solve(np.eye(2) - A, B), (3, 1)), rtol=1e-3)
    iterates = [np.zeros(2)]
    for _ in range(int(stats.steps[0])):
        iterates.append(iterates[-1] @ A + B)
    residuals = np.linalg.norm(np.diff(iterates, axis=0), axis=1)
    np.testing.assert_allclose(stats.residual, residuals[-1], rtol=1e-8)
    assert residuals[-1] <= 1e-4 * np.linalg.norm(iterates[-1]) < residuals[-2]


REFUSED = {
    "integers": (np.zeros((3, 2), np.int32), TypeError, r"real floating-point arrays, got int32.*convert it to float"),
    "complex numbers": (np.zeros((3, 2), np.complex64), TypeError, r"got complex64.*real and imaginary parts as two arrays"),
    "an integer leaf": ({"a": np.zeros((3, 2)), "b": np.arange(3)}, TypeError, r"int32 at [yz]0\['b'\]"),
    "nothing": ({}, ValueError, "holds no array"),
    "no common batch": ({"a": np.zeros((3, 2)), "b": np.zeros((2, 2))}, ValueError, r"leading batch axis, got shapes \(3, 2\), \(2, 2\)"),
    "a leaf without batch": ({"a": np.zeros((3, 2)), "b": np.zeros(())}, ValueError, r"leading batch axis, got shapes \(3, 2\), \(\)"),
}


@pytest.mark.parametrize(("guess", "kind", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("solve", [fixed_point, root, argmin])
def test_a_guess_that_is_no_state_is_refused(solve, guess, kind, message):
    with pytest.raises(kind, match=message):
        solve(lambda y: jax.tree.leaves(y)[0][:, 0] if solve is argmin else y, guess)


@pytest.mark.parametrize("solve", [fixed_point, root])
def test_a_value_of_another_structure_is_refused(solve):
    with pytest.raises(ValueError, match=r"the value of [fF] must have the structure of its argument: expected .*'a'.*'b'.*got .*'a'"):
        solve(lambda z: {"a": z["a"]}, {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 1))})


def test_an_empty_batch_has_an_empty_answer(question):
    solve, pose = question
    value, stats = solve(pose(A, B), jnp.zeros((0, 2)))
    assert value.shape == (0, 2)
    assert stats.status.shape == stats.steps.shape == stats.residual.shape == (0,)
    gradient = jax.grad(lambda b: solve(pose(A, b), jnp.zeros((0, 2))).value.sum())(B)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("solver", [None, Picard(rtol=0.0, max_steps=1000)], ids=["default", "picard"])
def test_zero_tolerance_ends_by_itself_with_a_status(question, solver):
    solve, pose = question
    solver = solver or (Anderson if solve is fixed_point else Newton)(rtol=0.0, max_steps=1000)
    value, stats = solve(pose(A, B), jnp.zeros((3, 2)), solver=solver)
    assert set(np.asarray(stats.status)) <= {Status.CONVERGED, Status.STAGNATED}
    assert (stats.steps < 1000).all()
    np.testing.assert_allclose(value, np.tile(np.linalg.solve(np.eye(2) - A, B), (3, 1)), rtol=1e-5)


def test_a_guess_that_is_not_finite_fails_alone(question):
    solve, pose = question
    value, stats = solve(pose(A, B), jnp.array([[0.0, 0.0], [jnp.nan, 0.0], [0.0, jnp.inf]]))
    assert list(stats.status) == [Status.CONVERGED, Status.DIVERGED, Status.DIVERGED]
    assert np.isfinite(value).all()


def test_what_is_no_contraction_diverges_by_plain_iteration_and_says_so(question):
    solve, pose = question
    solution = solve(pose(3 * A, B), jnp.zeros((3, 2)), solver=Picard(max_steps=200))  # of spectral radius 1.5
    assert (solution.stats.status == Status.DIVERGED).all()
    assert np.isfinite(solution.value).all()
    with pytest.raises(ConvergenceError, match=r"3 of 3 samples.*\(DIVERGED\); damp the solver"):
        solution.check()
    gradient = jax.jit(jax.grad(lambda b: solve(pose(3 * A, b), jnp.zeros((3, 2)), solver=Picard(max_steps=200)).value.sum()))(B)
    np.testing.assert_array_equal(gradient, 0)


# --- Gradients that do not work with a solver ---

MISMATCHES = {
    "shine": (Shine(), Anderson(), "Shine works with the solver Broyden, got Anderson"),
    "reversible adjoint": (ReversibleAdjoint(), Picard(), "ReversibleAdjoint works with the solver Reversible, got Picard"),
    "unrolled": (Unrolled(), Newton(), "Unrolled differentiates the solver's steps, and those of Newton do not; use Implicit"),
}


@pytest.mark.parametrize(("gradient", "solver", "message"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_gradient_that_does_not_work_with_the_solver(question, gradient, solver, message):
    solve, pose = question
    with pytest.raises(ValueError, match=message):
        solve(pose(A, B), jnp.zeros((3, 2)), solver=solver, gradient=gradient)


@pytest.mark.parametrize(("gradient", "solver", "message"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_layer_with_such_a_gradient_is_not_built(gradient, solver, message):
    with pytest.raises(ValueError, match=message):
        DEQ(lambda z, x: z, solver, gradient)
