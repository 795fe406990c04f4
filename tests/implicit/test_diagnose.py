"""The errors that a diagnosis bounds and estimates, and what it makes of odd arguments; test_spectrum.py has the rest of its numbers."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import (
    GMRES,
    Anderson,
    Broyden,
    Implicit,
    JacobianFree,
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
from deqflow.implicit.diagnose import diagnose

KEY = jax.random.key(3)
TIGHT = Implicit(linear=GMRES(rtol=1e-13, restart=40, max_steps=400))


def linear(A, b):
    """The map `z -> A z + b` with a matrix per sample, whose Jacobian is A everywhere."""
    return lambda z: jnp.einsum("bij,bj->bi", A, z) + b


def contractions(batch, n, norms):
    A = np.random.default_rng(5).standard_normal((batch, n, n))
    return jnp.asarray(A * (norms / np.linalg.norm(A, 2, axis=(1, 2)))[:, None, None])


@pytest.mark.parametrize("steps", [64, 5])
def test_the_bound_bounds_the_distance_to_the_solution(x64, normal, steps):
    norms = np.linspace(0.2, 0.99, 40)
    A, b = contractions(40, 10, norms), normal(40, 10)
    f = lambda z: jnp.tanh(linear(A, b)(z))  # noqa: E731
    loose, z0 = Picard(max_steps=4, rtol=1e-12), jnp.zeros((40, 10))
    distance = np.linalg.norm(
        fixed_point(f, z0, solver=loose).value - fixed_point(f, z0, solver=Anderson(rtol=1e-14, max_steps=500)).value, axis=1
    )
    d = diagnose(f, z0, solver=loose, gradient=JacobianFree(), key=KEY, lipschitz=norms * (1 + 1e-12), steps=steps)
    assert d.error_is_bound.all()
    assert (distance <= d.error).all()
    np.testing.assert_allclose(d.error, d.residual / (1 - norms), rtol=1e-9)
    np.testing.assert_allclose(d.lipschitz, norms)


def test_the_bound_is_sharp_and_the_estimate_is_one(x64):
    rate = np.array([0.5, 0.9, -0.9])
    f = lambda z: jnp.asarray(rate)[:, None] * z + 1  # noqa: E731
    z0 = jnp.zeros((3, 4))
    value = fixed_point(f, z0, solver=(loose := Picard(max_steps=3))).value
    distance = np.linalg.norm(value - (1 / (1 - rate))[:, None], axis=1)
    bound = diagnose(f, z0, solver=loose, key=KEY, lipschitz=np.abs(rate))
    np.testing.assert_allclose(bound.error[:2], distance[:2], rtol=1e-12)  # attained
    assert bound.error[2] > 10 * distance[2]
    estimate = diagnose(f, z0, solver=loose, key=KEY)
    assert not estimate.error_is_bound.any()
    assert np.isnan(estimate.lipschitz).all()
    np.testing.assert_allclose(estimate.error, distance, rtol=1e-12)
    assert "distance to the solution, bound " in str(bound)
    assert "distance to the solution, estimate " in str(estimate)


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.array([0.5, 0.5, 0.5])], ids=["negative", "nan", "shape"])
def test_an_impossible_constant(bad):
    with pytest.raises(ValueError, match="lipschitz must be one number >= 0, or one for each of the 2 samples"):
        diagnose(lambda z: 0.5 * z, jnp.zeros((2, 3)), key=KEY, lipschitz=bad)


# kind of gradient, a solver that it works with, and its rms error over cotangents from the matrices A = J and W = (I - J)⁻ᵀ
def neumann(J, steps):
    return sum(np.linalg.matrix_power(J, i) for i in range(steps + 1))


def damped(J, steps, damping):
    D = (1 - damping) * np.eye(len(J)) + damping * J
    return damping * sum(np.linalg.matrix_power(D, i) for i in range(steps))


GRADIENTS = {
    "jacobian free": (JacobianFree(), Picard(max_steps=300), lambda J: np.eye(len(J))),
    "truncated": (TruncatedNeumann(steps=3), Anderson(), lambda J: neumann(J, 3)),
    "phantom": (Phantom(steps=4, damping=0.7), Anderson(), lambda J: damped(J, 4, 0.7)),
    "shine": (Shine(), Broyden(memory=4), None),
    "unrolled": (Unrolled(), Picard(max_steps=6), lambda J: neumann(J, 4)),
    "reversible": (ReversibleAdjoint(), Reversible(max_steps=5), None),
    "implicit, loose": (Implicit(linear=GMRES(rtol=0.3)), Anderson(), None),
    "implicit, tight": (TIGHT, Anderson(), lambda J: np.linalg.inv(np.eye(len(J)) - J)),
}


@pytest.mark.parametrize("case", GRADIENTS.values(), ids=GRADIENTS.keys())
def test_the_error_of_every_gradient_for_a_cotangent(x64, normal, case):
    gradient, solver, _ = case
    A, b, g = contractions(3, 6, np.array([0.8, 0.9, 0.99])), normal(3, 6) / 4, normal(3, 6, seed=4)
    z0 = normal(3, 6, seed=6)
    f = lambda b: lambda z: jnp.tanh(linear(A, 0.0)(z)) + b  # noqa: E731
    solution = lambda b: fixed_point(f(b), z0, solver=solver, gradient=gradient).value  # noqa: E731
    z, pull = jax.vjp(solution, b)
    (w,) = pull(g)
    J = (1 - np.tanh(linear(A, 0.0)(z)) ** 2)[:, :, None] * np.asarray(A)
    exact = np.linalg.solve(np.eye(6) - J.swapaxes(1, 2), np.asarray(g)[..., None])[..., 0]
    error = np.linalg.norm(w - exact, axis=1) / np.linalg.norm(exact, axis=1)
    d = diagnose(f(b), z0, solver=solver, gradient=gradient, key=KEY, cotangent=g)
    np.testing.assert_allclose(d.gradient_error, error, rtol=1e-6, atol=1e-11)
    np.testing.assert_allclose(d.jacobian_norm, np.linalg.norm(J, 2, axis=(1, 2)), rtol=1e-10)
    if gradient is TIGHT:
        assert (error < 1e-11).all()
    else:
        assert (error > 1e-4).all()
    assert d.gradient == type(gradient).__name__


@pytest.mark.parametrize("name", ["jacobian free", "truncated", "phantom", "unrolled", "implicit, tight"])
def test_the_error_of_a_gradient_over_random_cotangents(x64, normal, name):
    """A single random cotangent finds the root mean square over all of them within a factor of 3, and on average within 1.2."""
    gradient, solver, inverse = GRADIENTS[name]
    A, b = contractions(24, 16, 0.9), normal(24, 16)
    W = np.linalg.inv(np.eye(16) - np.asarray(A))
    approximate = np.stack([inverse(J) for J in np.asarray(A)])
    error = np.linalg.norm(approximate - W, axis=(1, 2)) / np.linalg.norm(W, axis=(1, 2))
    d = diagnose(linear(A, b), jnp.zeros((24, 16)), solver=solver, gradient=gradient, key=KEY)
    if gradient is TIGHT:
        assert (d.gradient_error < 1e-11).all()
    else:
        assert (error / 3 < d.gradient_error).all()
        assert (d.gradient_error < 3 * error).all()
        np.testing.assert_allclose(np.median(d.gradient_error / error), 1, atol=0.2)


def test_the_error_of_shine_over_random_cotangents(x64, normal):
    """The same for Shine, whose inverse is found column by column."""
    gradient, solver, _ = GRADIENTS["shine"]
    A, b = contractions(8, 10, 0.9), normal(8, 10)

    def column(e):
        solution = lambda b: fixed_point(linear(A, b), jnp.zeros((8, 10)), solver=solver, gradient=gradient).value  # noqa: E731
        return jax.vjp(solution, b)[1](jnp.broadcast_to(e, b.shape))[0]

    approximate = np.moveaxis(jax.jit(lambda: jax.lax.map(column, jnp.eye(10)))(), 0, 2)
    W = np.linalg.inv(np.eye(10) - np.asarray(A)).swapaxes(1, 2)
    error = np.linalg.norm(approximate - W, axis=(1, 2)) / np.linalg.norm(W, axis=(1, 2))
    d = diagnose(linear(A, b), jnp.zeros((8, 10)), solver=solver, gradient=gradient, key=KEY)
    assert (error > 0.01).all()
    assert (error / 3 < d.gradient_error).all()
    assert (d.gradient_error < 3 * error).all()


def test_the_backward_solve_is_that_of_the_gradient(x64, normal):
    A, b, g = contractions(3, 8, np.array([0.5, 0.8, 0.95])), normal(3, 8), normal(3, 8, seed=4)
    solver = GMRES(max_steps=3, rtol=1e-9)
    d = diagnose(linear(A, b), jnp.zeros((3, 8)), gradient=Implicit(linear=solver), key=KEY, cotangent=g)
    w, _ = solver.solve(lambda v: v - jnp.einsum("bji,bj->bi", A, v), g)
    left = g - (w - jnp.einsum("bji,bj->bi", A, w))
    np.testing.assert_allclose(d.backward_residual, np.linalg.norm(left, axis=1) / np.linalg.norm(g, axis=1), rtol=1e-9)
    np.testing.assert_array_equal(d.backward_status, Status.STEP_LIMIT)
    np.testing.assert_array_equal(d.backward_steps, 3)
    assert "all 3 samples: the linear solve by the linear solver of Implicit did not converge" in str(d)
    other = diagnose(linear(A, b), jnp.zeros((3, 8)), gradient=JacobianFree(), key=KEY, cotangent=g)
    assert (other.backward_status == Status.CONVERGED).all()
    assert (other.backward_residual < 1e-5).all()


def test_a_failed_sample_has_no_numbers_and_disturbs_no_other():
    rate = jnp.array([[0.01], [1e12], [0.02]])
    b = jnp.linspace(0.1, 0.5, 6).reshape(3, 2) * jnp.array([[1.0], [1e9], [1.0]])
    f = lambda rate, b: lambda z: rate * z**3 + 0.3 * jnp.tanh(z) + b  # noqa: E731
    solver = Picard(max_steps=60, rtol=1e-5)
    keep = np.array([0, 2])
    g = jnp.ones((3, 2))
    names = ("residual", "error", "spectral_radius", "jacobian_norm", "condition", "backward_residual", "gradient_error")
    d = diagnose(f(rate, b), jnp.zeros((3, 2)), solver=solver, key=KEY, lipschitz=0.5, cotangent=g)
    alone = diagnose(f(rate[keep], b[keep]), jnp.zeros((2, 2)), solver=solver, key=KEY, lipschitz=0.5, cotangent=g[:2])
    coarse = diagnose(f(rate, b), jnp.zeros((3, 2)), solver=solver, key=KEY, lipschitz=0.5, cotangent=g, steps=1)
    for name in names:
        np.testing.assert_allclose(getattr(d, name)[keep], getattr(alone, name), rtol=1e-4, atol=1e-6, err_msg=name)
    for found in (d, coarse):
        assert list(found.status) == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
        assert list(found.failed) == [False, True, False]
        for name in names:
            np.testing.assert_array_equal(np.isnan(getattr(found, name)), [False, True, False], err_msg=name)
        assert not found.error_is_bound[1]
        assert "3 samples of dimension 2, 1 failed" in str(found)
        assert "sample 1: the iteration grew without bound" in str(found)
        assert "damp the solver" in str(found)


def test_a_jacobian_that_is_not_finite():
    f = lambda z: jnp.where(jnp.array([[True], [False]]), jnp.sqrt(jnp.where(z == 0, 0.0, jnp.abs(z))) + 0 * jnp.sqrt(z), 0.5 * z)  # noqa: E731
    d = diagnose(f, jnp.zeros((2, 2)), key=KEY, lipschitz=0.5)
    assert (d.status == Status.CONVERGED).all()
    assert np.isnan(d.spectral_radius[0]) and np.isnan(d.condition[0]) and np.isnan(d.gradient_error[0])
    np.testing.assert_allclose(d.spectral_radius[1], 0.5, rtol=1e-6)
    assert "sample 0: the Jacobian of f holds NaN or infinity" in str(d)


def test_pytrees_and_single_equations(x64, normal):
    A, b = contractions(2, 5, np.array([0.6, 0.8])), normal(2, 5)

    def tree(v):
        return {"a": v[..., :4].reshape(*v.shape[:-1], 2, 2), "b": (v[..., 4:],)}

    def flat(t):
        return jnp.concatenate([t["a"].reshape(*t["a"].shape[:-2], 4), t["b"][0]], axis=-1)

    g = normal(2, 5, seed=4)
    whole = diagnose(linear(A, b), jnp.zeros((2, 5)), key=KEY, cotangent=g)
    trees = diagnose(lambda t: tree(linear(A, b)(flat(t))), tree(jnp.zeros((2, 5))), key=KEY, cotangent=tree(g))
    one = diagnose(lambda t: tree(A[0] @ flat(t) + b[0]), tree(jnp.zeros(5)), key=KEY, cotangent=tree(g[0]), batched=False, lipschitz=0.6)
    for name in ("status", "steps", "spectral_radius", "jacobian_norm", "condition", "error", "backward_steps"):
        np.testing.assert_allclose(getattr(trees, name), getattr(whole, name), rtol=1e-9, err_msg=name)
        assert getattr(one, name).shape == ()
        if name != "error":
            np.testing.assert_allclose(getattr(one, name), getattr(whole, name)[0], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(one.error, one.residual / 0.4)
    assert one.size == whole.size == 5
    assert str(one).startswith("1 sample of dimension 5, 0 failed")
    assert str(one).endswith("No problem found.")


def test_half_precision_is_measured_in_float32():
    d = diagnose(lambda z: jnp.bfloat16(0.5) * z + 1, jnp.zeros((2, 3), jnp.bfloat16), key=KEY, solver=Picard(rtol=1e-2))
    np.testing.assert_allclose(d.spectral_radius, 0.5, rtol=1e-2)
    np.testing.assert_allclose(d.condition, 1.0, rtol=1e-2)
    assert (d.gradient_error < 2e-2).all()
    assert d.epsilon == np.finfo(np.float32).eps


def test_tracers_are_refused():
    run = lambda z0, a: diagnose(lambda z: a * z + 1, z0, key=KEY).condition  # noqa: E731
    z0 = jnp.zeros((2, 3))
    with pytest.raises(TypeError, match="its arguments hold tracers: call it outside of jit"):
        jax.jit(lambda z0: run(z0, 0.5))(z0)
    with pytest.raises(TypeError, match="what f closes over hold tracers"):
        jax.grad(lambda a: run(z0, a).sum())(0.5)
    with pytest.raises(TypeError, match="hold tracers"):
        jax.jit(lambda: run(z0, 0.5))()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be >= 1"),
        ({"gradient": Shine()}, ValueError, "works with the solver Broyden"),
        ({"cotangent": jnp.ones((2, 4))}, ValueError, "cotangent must have the shape"),
        ({"z0": jnp.arange(3)}, TypeError, "int32"),
        ({"f": lambda z: z[:, :1]}, ValueError, "the value of f"),
    ],
    ids=["steps", "gradient", "cotangent", "z0", "f"],
)
def test_arguments_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        diagnose(**{"f": lambda z: 0.5 * z, "z0": jnp.zeros((2, 3)), "key": KEY, **options})


def test_nothing_is_kept_alive():
    def run():
        W = jnp.eye(3) * 0.5
        diagnose(lambda z: z @ W + 1, jnp.zeros((1, 3)), key=KEY)
        return weakref.ref(W)

    reference = run()
    gc.collect()
    assert reference() is None
