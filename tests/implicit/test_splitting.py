"""Both splittings of a monotone inclusion, against each other, the dense solution and unrolling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import GMRES, Anderson, Broyden, Implicit, Picard, Status, fixed_point
from deqflow.implicit.splitting import MonotoneInclusion

TIGHT = GMRES(rtol=1e-13, restart=30, max_steps=300)
M = 0.5  # the strong monotonicity that `weight` gives
SPLITTINGS = ["forward_backward", "peaceman_rachford"]


def weight(n=8, skew=2.0, seed=2):
    """`(1 - m) I - AᵀA + B - Bᵀ`."""
    A, B = np.random.default_rng(seed).standard_normal((2, n, n)) / np.sqrt(n)
    return jnp.asarray((1 - M) * np.eye(n) - A.T @ A + skew * (B - B.T))


def lipschitz(W):
    return float(np.linalg.norm(np.eye(len(W)) - W, 2))


def relu(u, alpha):
    return jax.nn.relu(u)


def network(W, b, **options):
    """The inclusion whose solution is `z = relu(W z + b)`, with its affine resolvent computed."""
    return MonotoneInclusion(lambda z: z - z @ W.T - b, relu, **{"linear": TIGHT, **options})


def network_with_inverse(W, b):
    """The same with its affine resolvent by a dense inverse."""
    eye = jnp.eye(len(W))
    return network(W, b, operator_resolvent=lambda u, alpha: (u + alpha * b) @ jnp.linalg.inv(eye + alpha * (eye - W)).T)


def solve_with(inclusion, splitting, alpha, z0, solver, **options):
    """The solution z and how its fixed point was reached."""
    value, stats = fixed_point(getattr(inclusion, splitting)(alpha), z0, solver=solver, **options)
    return (inclusion.solution(value, alpha) if splitting == "peaceman_rachford" else value), stats


def step_size(splitting, W):
    return M / lipschitz(W) ** 2 if splitting == "forward_backward" else 1 / lipschitz(W)


@pytest.fixture
def b(normal):
    return normal(3, 8)


def test_both_converge_to_one_solution_where_plain_iteration_diverges(x64, b):
    W = weight()
    np.testing.assert_array_less(M * (1 - 1e-9), np.linalg.eigvalsh(np.eye(8) - (W + W.T) / 2))
    plain = fixed_point(lambda z: jax.nn.relu(z @ W.T + b), jnp.zeros_like(b), solver=Picard(max_steps=100))
    assert (plain.stats.status == Status.DIVERGED).all()

    picard = Picard(rtol=1e-12, max_steps=5000)
    z = {s: solve_with(network(W, b), s, step_size(s, W), jnp.zeros_like(b), picard) for s in SPLITTINGS}
    for value, stats in z.values():
        assert stats.converged.all()
        np.testing.assert_allclose(value, jax.nn.relu(value @ W.T + b), atol=1e-9)
        assert ((value > 1e-3).any(1) & (value == 0).any(1)).all(), "no sample is linear"
    np.testing.assert_allclose(z["forward_backward"][0], z["peaceman_rachford"][0], atol=1e-9)


def test_forward_backward_converges_below_its_step_limit_and_says_when_it_diverges(x64, b):
    W = weight()
    limit = 2 * M / lipschitz(W) ** 2

    # One program for all: the step size may be traced.
    @jax.jit
    def solve(alpha):
        return fixed_point(network(W, b).forward_backward(alpha), jnp.zeros_like(b), solver=Picard(rtol=1e-8, max_steps=5000)).stats

    assert (solve(0.2 * limit).status == Status.CONVERGED).all()
    assert (solve(0.99 * limit).status == Status.CONVERGED).all()
    assert (solve(100 * limit).status == Status.DIVERGED).all()


def test_forward_backward_contracts_as_promised(x64, b):
    W = weight()
    step = network(W, b).forward_backward(M / lipschitz(W) ** 2)
    other = jnp.flip(b)
    ratio = np.linalg.norm(step(b) - step(other), axis=1) / np.linalg.norm(b - other, axis=1)
    assert (ratio <= np.sqrt(1 - (M / lipschitz(W)) ** 2)).all()


@pytest.mark.parametrize("make", [network, network_with_inverse])
def test_peaceman_rachford_converges_for_every_step_size(x64, b, make):
    W = weight()

    @jax.jit
    def solve(alpha):
        return solve_with(make(W, b), "peaceman_rachford", alpha, jnp.zeros_like(b), Picard(rtol=1e-9, max_steps=5000))

    for alpha in (0.02, 0.1, 0.5, 2.0, 20.0):
        z, stats = solve(alpha)
        assert stats.converged.all(), alpha
        np.testing.assert_allclose(z, jax.nn.relu(z @ W.T + b), atol=1e-6)


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_anderson_needs_fewer_evaluations(x64, b, splitting):
    W = weight()
    plain, accelerated = (
        solve_with(network(W, b), splitting, step_size(splitting, W), jnp.zeros_like(b), solver)[1]
        for solver in (Picard(rtol=1e-9, max_steps=5000), Anderson(history=10, rtol=1e-9, max_steps=5000))
    )
    assert plain.converged.all() and accelerated.converged.all()
    assert (2 * accelerated.evaluations < plain.evaluations).all()


@pytest.mark.parametrize("solver", [Anderson(), Anderson(history=20), Anderson(history=20, check_every=3), Broyden(memory=5)], ids=str)
def test_no_sample_is_stuck_between_the_pieces_of_a_contraction(x64, solver, normal):
    """Without a second chance from the best iterate some are told that they have stagnated or diverged."""
    W, b = weight(seed=3), normal(100, 8)
    solver = dataclasses.replace(solver, rtol=1e-9, max_steps=2000)
    z, stats = solve_with(network(W, b), "forward_backward", step_size("forward_backward", W), jnp.zeros_like(b), solver)
    assert stats.converged.all()
    np.testing.assert_allclose(z, jax.nn.relu(z @ W.T + b), atol=1e-5)


def test_a_sample_that_is_put_back_disturbs_no_other(x64, normal):
    W, b = weight(seed=3), normal(100, 8)
    easy = b.at[50:].set(-1.0)  # the solution is zero, found at once
    solve = lambda b: solve_with(  # noqa: E731
        network(W, b), "forward_backward", step_size("forward_backward", W), jnp.zeros_like(b), Anderson(rtol=1e-9, max_steps=2000)
    )
    (z, stats), (other, others) = solve(b), solve(easy)
    np.testing.assert_array_equal(z[:50], other[:50])
    np.testing.assert_array_equal(stats.evaluations[:50], others.evaluations[:50])


def test_the_order_is_that_of_the_paper(x64, b):
    """One step, written out: first the activation, then the affine resolvent."""
    W, alpha, u = weight(), 0.3, jnp.flip(b)
    half = 2 * np.maximum(u, 0) - u
    affine = np.linalg.solve(np.eye(8) + alpha * (np.eye(8) - W), (half + alpha * b).T).T
    for inclusion in (network(W, b), network_with_inverse(W, b)):
        np.testing.assert_allclose(inclusion.peaceman_rachford(alpha)(u), 2 * affine - half, rtol=1e-10)
    np.testing.assert_allclose(network(W, b).forward_backward(alpha)(u), np.maximum(u - alpha * (u - u @ W.T - b), 0), rtol=1e-10)


def test_half_damping_is_douglas_rachford(x64, b):
    """On a rotation, which is monotone but not strongly, only the averaged iteration converges."""
    S = jnp.asarray([[0.0, 1.0], [-1.0, 0.0]])
    c = b[:, :2]
    inclusion = MonotoneInclusion(lambda z: z @ S.T + c, lambda u, alpha: u, linear=TIGHT)
    step = inclusion.peaceman_rachford(1.0)
    solve = lambda damping: fixed_point(step, jnp.zeros_like(c), solver=Picard(damping=damping, rtol=1e-9, max_steps=300))  # noqa: E731
    assert not solve(1.0).stats.converged.any()
    np.testing.assert_allclose(inclusion.solution(solve(0.5).check(), 1.0), -np.linalg.solve(S, c.T).T, atol=1e-7)

    W, u = weight(), jnp.flip(b)
    z = np.maximum(u, 0)
    douglas = u - z + np.linalg.solve(np.eye(8) + 0.3 * (np.eye(8) - W), (2 * z - u + 0.3 * b).T).T
    np.testing.assert_allclose(u / 2 + network(W, b).peaceman_rachford(0.3)(u) / 2, douglas, rtol=1e-10)


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_a_resolvent_that_depends_on_the_step_size(x64, normal, splitting):
    """The lasso, ½ ‖A z - y‖² + λ ‖z‖₁, by its optimality conditions."""
    A, y, penalty = normal(10, 6), normal(2, 10, seed=3), 2.0
    soft = lambda u, alpha: jnp.sign(u) * jax.nn.relu(jnp.abs(u) - penalty * alpha)  # noqa: E731
    inclusion = MonotoneInclusion(lambda z: (z @ A.T - y) @ A, soft, linear=TIGHT)
    z, stats = solve_with(inclusion, splitting, 0.05, jnp.zeros((2, 6)), Anderson(rtol=1e-12, max_steps=500))
    assert stats.converged.all()
    slope = np.asarray((y - z @ A.T) @ A)
    zero = np.abs(z) < 1e-9
    assert zero.any() and not zero.all()
    np.testing.assert_allclose(slope[~zero], penalty * np.sign(z[~zero]), atol=1e-8)
    assert (np.abs(slope[zero]) <= penalty).all()


@pytest.mark.parametrize("solver", [Picard(rtol=1e-12, max_steps=2000), Anderson(rtol=1e-12, max_steps=500)], ids=["picard", "anderson"])
@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_pytrees_batched_or_not(x64, b, splitting, solver):
    W = weight(skew=0.5)

    def tree(v):
        return {"image": v[..., :6].reshape(*v.shape[:-1], 2, 3), "vector": v[..., 6:]}

    def flat(t):
        return jnp.concatenate([t["image"].reshape(*t["vector"].shape[:-1], 6), t["vector"]], axis=-1)

    def solve(b, batched):
        operator = lambda t: tree(flat(t) - flat(t) @ W.T - b)  # noqa: E731
        inclusion = MonotoneInclusion(operator, lambda t, alpha: jax.tree.map(jax.nn.relu, t), linear=TIGHT, batched=batched)
        return solve_with(inclusion, splitting, step_size(splitting, W), tree(jnp.zeros_like(b)), solver, batched=batched)

    z, stats = solve(b, True)
    assert stats.converged.all()
    assert z["image"].shape == (3, 2, 3)
    np.testing.assert_allclose(flat(z), jax.nn.relu(flat(z) @ W.T + b), atol=1e-9)
    alone, stats = solve(b[1], False)
    assert stats.converged.shape == ()
    np.testing.assert_allclose(flat(alone), flat(z)[1], atol=1e-9)


def test_leaves_keep_their_types():
    z = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones((2, 2), jnp.float32)}
    inclusion = MonotoneInclusion(lambda z: jax.tree.map(lambda leaf: 2 * leaf - 1, z), lambda z, alpha: jax.tree.map(jax.nn.relu, z))
    for splitting in SPLITTINGS:
        out = jax.jit(getattr(inclusion, splitting)(jnp.float32(0.2)))(z)
        assert {name: leaf.dtype for name, leaf in out.items()} == {"a": jnp.bfloat16, "b": jnp.float32}


def active_set_gradients(W, b, c):
    """Gradients of `Σ c z` by the dense formula: where a unit is active, z = W z + b; elsewhere z = 0."""
    # The enumeration of active sets knows nothing of splittings.
    n, z, w = len(W), np.zeros_like(b), np.zeros_like(b)
    for sample in range(len(b)):
        for pattern in range(2**n):
            D = np.diag([float(pattern >> i & 1) for i in range(n)])
            candidate = np.linalg.solve(np.eye(n) - D @ W, D @ b[sample])
            if (candidate >= 0).all() and ((W @ candidate + b[sample])[np.diag(D) == 0] <= 0).all():
                z[sample] = candidate
                w[sample] = D @ np.linalg.solve((np.eye(n) - D @ W).T, c[sample])
    return z, w.T @ z, w


@jax.jit
def unrolled_gradients(W, b, c, alpha):
    step = lambda W, b: network(W, b).forward_backward(alpha)  # noqa: E731
    loss = lambda W, b: jnp.sum(c * jax.lax.scan(lambda z, _: (step(W, b)(z), None), jnp.zeros_like(b), length=500)[0])  # noqa: E731
    return jax.grad(loss, (0, 1))(W, b)


@pytest.mark.parametrize("make", [network, network_with_inverse])
@pytest.mark.parametrize("solver", [Picard(rtol=1e-13, max_steps=2000), Anderson(rtol=1e-13, max_steps=500)], ids=["picard", "anderson"])
@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_gradients_against_the_active_set_unrolling_and_finite_differences(x64, normal, splitting, solver, make):
    W, b, c = weight(n=5, skew=0.5), normal(3, 5), normal(3, 5, seed=4)
    alpha = step_size(splitting, W)

    def loss(W, b):
        z, stats = solve_with(make(W, b), splitting, alpha, jnp.zeros_like(b), solver, gradient=Implicit(linear=TIGHT))
        return jnp.sum(c * z), (z, stats)

    value_and_grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, (z, stats)), (dW, db) = value_and_grad(W, b)
    assert stats.converged.all()
    want_z, want_dW, want_db = active_set_gradients(*map(np.asarray, (W, b, c)))
    assert (want_z == 0).any() and (want_z > 0).any()
    np.testing.assert_allclose(z, want_z, atol=1e-10)
    np.testing.assert_allclose(db, want_db, atol=1e-9)
    np.testing.assert_allclose(dW, want_dW, atol=1e-9)
    for got, want in zip((dW, db), unrolled_gradients(W, b, c, 3 * M / lipschitz(W) ** 2), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)
    # Central differences along one direction, in which no unit changes sides.
    dot = lambda a, b: sum(float(jnp.vdot(x, y)) for x, y in zip(a, b, strict=True))  # noqa: E731
    direction, h = (jnp.cos(W), jnp.sin(b)), 1e-5
    up, down = (value_and_grad(W + s * direction[0], b + s * direction[1])[0][0] for s in (h, -h))
    np.testing.assert_allclose(dot((dW, db), direction), (up - down) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_the_step_size_has_no_influence_on_the_solution(x64, b, splitting):
    W = weight(skew=0.5)
    solver, gradient = Anderson(rtol=1e-13, max_steps=500), Implicit(linear=TIGHT)
    slope = jax.jit(
        jax.grad(lambda alpha: solve_with(network(W, b), splitting, alpha, jnp.zeros_like(b), solver, gradient=gradient)[0].sum())
    )
    np.testing.assert_allclose(slope(step_size(splitting, W)), 0, atol=1e-9)


def test_forward_mode_and_second_derivatives(x64, normal):
    """G(z) = z², on the positive numbers that it keeps to, has a smooth resolvent."""
    W, b, v = weight(n=4, skew=0.3), 2 + normal(4) / 4, normal(4, seed=2)
    root = lambda u, alpha: 2 * u / (1 + jnp.sqrt(1 + 4 * alpha * u))  # noqa: E731
    options = {"batched": False, "gradient": Implicit(linear=TIGHT)}

    def implicitly(b):
        inclusion = MonotoneInclusion(lambda z: z - W @ z - b, root, linear=TIGHT, batched=False)
        z, _ = solve_with(inclusion, "peaceman_rachford", 0.4, jnp.ones_like(b), Anderson(rtol=1e-13, max_steps=300), **options)
        return jnp.sum(z**2)

    def newton(b):
        step = lambda z: z - jnp.linalg.solve(jnp.eye(4) - W + 2 * jnp.diag(z), z - W @ z - b + z**2)  # noqa: E731
        return jnp.sum(jax.lax.scan(lambda z, _: (step(z), None), jnp.ones(4), length=30)[0] ** 2)

    def derivatives(f):
        """The value and its derivative along v by forward mode, the gradient by reverse mode and its derivative along v."""
        return jax.jvp(f, (b,), (v,)), jax.jvp(jax.grad(f), (b,), (v,))

    got, want = (jax.tree.leaves(jax.jit(derivatives, static_argnums=0)(f)) for f in (implicitly, newton))
    for one, two in zip(got, want, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9)


def test_samples_are_independent_bitwise(b):
    W, b = weight(skew=0.5).astype(jnp.float32), b.astype(jnp.float32)

    @jax.jit
    def solve(b):
        def total(b):
            z, stats = solve_with(network(W, b, linear=GMRES()), "peaceman_rachford", 0.3, jnp.zeros_like(b), Anderson())
            return z[0].sum(), (z[0], stats.steps[0])

        (_, out), gradient = jax.value_and_grad(total, has_aux=True)(b)
        return *out, gradient[0]

    for one, two in zip(solve(b), solve(b.at[1].set(100.0).at[2].set(jnp.inf)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_defaults_reach_their_tolerance_in_float32(b):
    W, b = weight().astype(jnp.float32), b.astype(jnp.float32)
    inclusion = MonotoneInclusion(lambda z: z - z @ W.T - b, relu)
    u = fixed_point(inclusion.peaceman_rachford(0.3), jnp.zeros_like(b)).check()
    z = inclusion.solution(u, 0.3)
    assert (np.linalg.norm(z - jax.nn.relu(z @ W.T + b), axis=1) <= 1e-2 * np.linalg.norm(z, axis=1)).all()


def test_a_linear_system_that_is_not_solved_counts_as_diverged(b):
    W, b = weight(skew=20.0).astype(jnp.float32), b.astype(jnp.float32)
    stats = fixed_point(network(W, b, linear=GMRES(restart=2, max_steps=2)).peaceman_rachford(1.0), b).stats
    assert (stats.status == Status.DIVERGED).all()


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan"), jnp.float32(-0.5)])
def test_step_sizes_that_are_none(alpha):
    inclusion = network(jnp.eye(2), jnp.ones(2))
    for use in (inclusion.forward_backward, inclusion.peaceman_rachford, lambda alpha: inclusion.solution(jnp.ones(2), alpha)):
        with pytest.raises(ValueError, match="alpha must be a positive and finite step size, got"):
            use(alpha)


def test_an_operator_that_is_not_affine_needs_its_resolvent():
    z = jnp.ones((2, 3))
    for curved in (lambda z: z**3, jax.nn.relu):
        with pytest.raises(ValueError, match="without operator_resolvent, operator must be affine"):
            MonotoneInclusion(curved, relu).peaceman_rachford(1.0)(z)
        MonotoneInclusion(curved, relu).forward_backward(1.0)(z)
    # F(z) = max(z, 0), which has a resolvent in closed form.
    halved = lambda u, alpha: jnp.where(u > 0, u / (1 + alpha), u)  # noqa: E731
    inclusion = MonotoneInclusion(jax.nn.relu, lambda u, alpha: (u + alpha) / (1 + alpha), halved)
    np.testing.assert_allclose(inclusion.solution(fixed_point(inclusion.peaceman_rachford(0.5), z).check(), 0.5), 0.5, rtol=1e-3)


AFFINE = {
    "constant": lambda z, W: jnp.ones_like(z),
    "convolution": lambda z, W: jax.vmap(lambda row: 2 * row - jnp.convolve(row, W[0, :3], mode="same"))(z),
    "remat": lambda z, W: jax.checkpoint(lambda z: z @ W.T + 1)(z),
    "scan": lambda z, W: jax.lax.scan(lambda c, w: (c + w * z, None), z, W[0])[0],
    "masked": lambda z, W: jnp.where(W[0] > 0, z, 2 * z) - 3,
}


@pytest.mark.parametrize("operator", AFFINE.values(), ids=AFFINE.keys())
def test_affine_operators_of_many_kinds_are_known_as_such(x64, b, operator):
    W = 0.1 * jnp.abs(weight())
    inclusion = MonotoneInclusion(lambda z: operator(z, W), lambda u, alpha: u, linear=TIGHT)
    z = (jax.jit(inclusion.peaceman_rachford(0.3))(b) + b) / 2
    np.testing.assert_allclose(z + 0.3 * operator(z, W), b, atol=1e-10)


def test_functions_that_return_something_else():
    z = jnp.ones((2, 3))
    good = lambda z, *alpha: z  # noqa: E731
    bad = lambda z, *alpha: z[:, :1]  # noqa: E731
    with pytest.raises(ValueError, match=r"the value of operator must have the shape .* expected float32\[2, 3\], got float32\[2, 1\]"):
        MonotoneInclusion(bad, good).forward_backward(1.0)(z)
    with pytest.raises(ValueError, match="the value of operator must have the shape"):
        MonotoneInclusion(bad, good).peaceman_rachford(1.0)(z)
    with pytest.raises(ValueError, match="the value of resolvent must have the shape"):
        MonotoneInclusion(good, bad).peaceman_rachford(1.0)(z)
    with pytest.raises(ValueError, match="the value of operator_resolvent must have the shape"):
        MonotoneInclusion(good, good, bad).peaceman_rachford(1.0)(z)
    with pytest.raises(TypeError, match="u must hold real floating-point arrays"):
        MonotoneInclusion(good, good).peaceman_rachford(1.0)(jnp.ones((2, 3), jnp.int32))
