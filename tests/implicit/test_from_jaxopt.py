"""The adapters against jaxopt itself; what every solver has to do is tested in test_solvers.py."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest

from deqflow.implicit import GMRES, Implicit, Status, Unrolled, fixed_point
from deqflow.implicit.from_jaxopt import JaxoptAnderson, JaxoptBroyden, JaxoptFixedPoint

KINDS = [JaxoptAnderson, JaxoptBroyden, JaxoptFixedPoint]
ADAPTERS = {
    "anderson": JaxoptAnderson(),
    "anderson mixed": JaxoptAnderson(history=3, mixing_frequency=2, damping=0.8, ridge=1e-8),
    "broyden": JaxoptBroyden(),
    "broyden wrapping": JaxoptBroyden(history=4),
    "broyden damped": JaxoptBroyden(damping=0.7),
    "fixed point": JaxoptFixedPoint(),
}


@pytest.fixture(params=list(ADAPTERS.values()), ids=list(ADAPTERS))
def adapter(request):
    return request.param


def points_of_jaxopt(adapter, f, z0, steps):
    """The points at which jaxopt evaluates `f`, run by itself on one problem."""
    points = []
    match adapter:
        case JaxoptAnderson():
            options = {"history_size": adapter.history, "mixing_frequency": adapter.mixing_frequency}
            method = jaxopt.AndersonAcceleration(f, beta=adapter.damping, ridge=adapter.ridge, **options)
            params, state = z0, method.init_state(z0)
            for step in range(steps):
                params, state = method.update(params, state)
                points.append(state.params_history[step % adapter.history])
        case JaxoptBroyden():
            history = adapter.history or adapter.max_steps
            method = jaxopt.Broyden(lambda z: z - f(z), history_size=history, stepsize=adapter.damping)
            params, state = z0, method.init_state(z0)
            for _ in range(steps):
                points.append(params)
                params, state = method.update(params, state)
        case JaxoptFixedPoint():
            method = jaxopt.FixedPointIteration(f)
            params, state = z0, method.init_state(z0)
            for _ in range(steps):
                points.append(params)
                params, state = method.update(params, state)
    return jnp.stack(points)


def problem(A, b):
    return lambda z: jnp.tanh(z @ A.T) + b


def test_the_iterates_are_those_of_jaxopt_and_each_takes_one_evaluation(x64, adapter, matrix, normal):
    A, b, z0 = matrix(0.9), normal(3, 8), normal(3, 8, seed=2)
    calls = []

    def f(z):
        calls.append(z.shape)
        return problem(A, b)(z)

    steps = 12
    state, points = adapter.init(z0), []
    assert not calls
    for step in range(steps):
        state = adapter.step(f, state)
        point = adapter.value(state)
        z, fz, evaluations = point.z, point.f, point.evaluations
        assert calls == [(3, 8)] * (step + 1)
        assert (evaluations == step + 1).all()
        # From samples of another batch shape the products are rounded differently.
        np.testing.assert_allclose(fz, problem(A, b)(z), rtol=1e-14)
        points.append(z)
    np.testing.assert_array_equal(points[0], z0)
    for sample in range(3):
        want = points_of_jaxopt(adapter, problem(A, b[sample]), z0[sample], steps)
        np.testing.assert_allclose(jnp.stack(points)[:, sample], want, rtol=1e-12, atol=1e-12)


def test_the_solution_is_that_of_a_run_of_jaxopt(x64, matrix, normal):
    A, b = matrix(0.9), normal(8)
    f = problem(A, b)
    want = jaxopt.AndersonAcceleration(f, maxiter=500, tol=1e-12, implicit_diff=False).run(jnp.zeros(8)).params
    for solver in (kind(rtol=1e-12, max_steps=500) for kind in KINDS):
        np.testing.assert_allclose(fixed_point(f, jnp.zeros(8), solver=solver, batched=False).check(), want, atol=1e-10)


def test_the_loop_alone_decides_when_to_stop(x64, normal):
    """jaxopt's own limits, 100 steps and 1e-5, are passed by both ways."""
    b = normal(2, 4)
    stats = fixed_point(lambda z: 0.95 * z + b, jnp.zeros((2, 4)), solver=JaxoptFixedPoint(rtol=1e-9, max_steps=1000), trace=True).stats
    assert stats.converged.all()
    assert (stats.steps > 300).all()
    loose = fixed_point(lambda z: 0.95 * z + b, jnp.zeros((2, 4)), solver=JaxoptAnderson(rtol=0.5)).stats
    assert loose.converged.all() and (loose.steps < 20).all()


def test_a_budget_of_nothing_returns_the_initial_guess(adapter, normal):
    z0 = normal(2, 3)
    value, stats = fixed_point(lambda z: 0.5 * z, z0, solver=adapter, budget=0)
    np.testing.assert_array_equal(value, z0)
    assert (stats.evaluations == 0).all()


def test_samples_are_independent_bitwise(adapter, matrix, normal):
    A, b, z0 = matrix(0.9).astype(jnp.float32), normal(4, 8).astype(jnp.float32), normal(4, 8, seed=2).astype(jnp.float32)

    @jax.jit
    def solve(b, z0):
        def total(b):
            value, stats = fixed_point(problem(A, b), z0, solver=adapter)
            return value[0].sum(), (value[0], stats.steps[0], stats.status[0], stats.residual[0])

        (_, out), gradient = jax.value_and_grad(total, has_aux=True)(b)
        return *out, gradient[0]

    others = b.at[1:].multiply(jnp.array([[100.0], [0.0], [jnp.nan]]))
    for one, two in zip(solve(b, z0), solve(others, z0.at[1:].set(7.0)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_implicit_gradients(x64, kind, matrix, normal):
    A, b, c = matrix(0.8), normal(3, 8), normal(3, 8, seed=3)
    linear = GMRES(rtol=1e-13, restart=30)

    @jax.jit
    def loss(A, b):
        solution = fixed_point(
            lambda z: z @ A.T + b, jnp.zeros_like(b), solver=kind(rtol=1e-13, max_steps=300), gradient=Implicit(linear=linear)
        )
        return jnp.sum(c * solution.value)

    dA, db = jax.grad(loss, (0, 1))(A, b)
    z = np.linalg.solve(np.eye(8) - A, b.T).T
    w = np.linalg.solve((np.eye(8) - A).T, c.T).T
    np.testing.assert_allclose(db, w, atol=1e-9)
    np.testing.assert_allclose(dA, w.T @ z, atol=1e-9)
    direction, h = (jnp.cos(A), jnp.sin(b)), 1e-6
    slope = (loss(A + h * direction[0], b + h * direction[1]) - loss(A - h * direction[0], b - h * direction[1])) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(dA, direction[0]) + jnp.vdot(db, direction[1]), slope, rtol=1e-6)


def test_steps_differentiate_or_say_that_they_do_not(x64, matrix, normal):
    A, b = matrix(0.8), normal(2, 8)

    def slope(solver, gradient):
        return jax.jit(jax.grad(lambda b: fixed_point(problem(A, b), jnp.zeros_like(b), solver=solver, gradient=gradient).value.sum()))(b)

    for solver in (JaxoptAnderson(rtol=1e-11, max_steps=80), JaxoptFixedPoint(rtol=1e-11, max_steps=300)):
        np.testing.assert_allclose(slope(solver, Unrolled()), slope(solver, Implicit(linear=GMRES(rtol=1e-12))), atol=1e-6)
    with pytest.raises(ValueError, match="those of JaxoptBroyden do not"):
        slope(JaxoptBroyden(), Unrolled())


TYPES = [("bfloat16", False), ("float32", False), ("bfloat16", True), ("float32", True), ("float64", True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "wide"), TYPES)
def test_states_of_every_type(kind, dtype, wide, normal):
    """jaxopt's buffers have the default type; the function sees, and the solution has, the type of the initial guess."""
    adapter = kind(rtol=2e-2 if dtype == "bfloat16" else 1e-4)
    with jax.enable_x64(wide):
        b = jnp.asarray(normal(2, 4), dtype)
        seen = set()

        def f(z):
            seen.add(str(z.dtype))
            return jnp.tanh(0.5 * z) + b

        state = adapter.init(jnp.zeros_like(b))
        types = jax.tree.map(jax.typeof, state)
        assert types == jax.tree.map(jax.typeof, adapter.step(f, state)), "weak types would compile the loop twice"
        value, stats = fixed_point(f, jnp.zeros_like(b), solver=adapter, gradient=Implicit())
        assert seen == {dtype} and value.dtype == dtype
        assert stats.converged.all()


def test_a_step_that_does_not_move_leaves_broyden_finite(x64):
    """A map with no fixed point at hand that is constant on both sides: jaxopt's own update is 0/0 there."""
    f = lambda z: jnp.where(z > 0, -1.0, 1.0)  # noqa: E731
    solver = JaxoptBroyden(rtol=1e-9)
    state = solver.init(jnp.ones((1, 1)))
    for _ in range(6):
        state = solver.step(f, state)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.inner.d_history, state.inner.c_history)))
    # Already there, and stepped on: nothing moves, nothing breaks.
    state = solver.init(jnp.full((1, 2), 2.0))
    for _ in range(4):
        state = solver.step(lambda z: 0.5 * z + 1, state)
    np.testing.assert_array_equal(solver.value(state).z, 2.0)


def test_vmap_over_whole_solves(x64, adapter, matrix, normal):
    A, b = matrix(0.8), normal(2, 3, 8)
    solve = lambda b: fixed_point(problem(A, b), jnp.zeros_like(b), solver=adapter).value  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.vmap(solve))(b), jnp.stack([solve(b[0]), solve(b[1])]), atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (JaxoptAnderson, {"history": 1}),
        (JaxoptAnderson, {"mixing_frequency": 0}),
        (JaxoptAnderson, {"damping": 0.0}),
        (JaxoptAnderson, {"ridge": -1.0}),
        (JaxoptBroyden, {"history": 0}),
        (JaxoptBroyden, {"damping": 1.5}),
        (JaxoptFixedPoint, {"max_steps": 0}),
    ],
)
def test_arguments_out_of_range(kind, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)


def test_a_failure_has_its_status(adapter):
    stats = fixed_point(lambda z: 1e9 * z**3 + 1e9, jnp.ones((1, 2)), solver=adapter).stats
    assert (stats.status == Status.DIVERGED).all()


def test_jaxopt_is_imported_when_a_solver_is_used_and_no_earlier():
    code = """if True:
        import sys, warnings
        warnings.simplefilter("error")
        import jax.numpy as jnp
        import deqflow, deqflow.implicit
        from deqflow.implicit.from_jaxopt import JaxoptAnderson, JaxoptBroyden, JaxoptFixedPoint
        solvers = JaxoptAnderson(), JaxoptBroyden(), JaxoptFixedPoint()
        assert "jaxopt" not in sys.modules
        warnings.simplefilter("ignore")
        solvers[0].init(jnp.zeros((1, 1)))
        assert "jaxopt" in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_missing_jaxopt_is_named(adapter, monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxopt", None)
    with pytest.raises(ImportError, match="need jaxopt: pip install jaxopt"):
        fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=adapter)
