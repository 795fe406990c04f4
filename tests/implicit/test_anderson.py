import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import Anderson, Picard, fixed_point


def problems(radius, n=64):
    """Ten Gaussian matrices scaled to a spectral radius, with their right-hand sides."""
    A, b = [], []
    for seed in range(10):
        generator = np.random.default_rng(seed)
        a = generator.standard_normal((n, n))
        A.append(a * radius / np.abs(np.linalg.eigvals(a)).max())
        b.append(generator.standard_normal(n))
    return jnp.asarray(np.stack(A)), jnp.asarray(np.stack(b))


# Median evaluations to an absolute residual of 1e-6 over ten seeds.
EVALUATIONS = [
    (5, 0.9, False, 78),
    (5, 0.99, False, 160),
    (5, 0.9, True, 24),
    (20, 0.9, False, 49),
    (20, 0.99, False, 63),
    (20, 0.9, True, 23),
]


@pytest.mark.parametrize(("history", "radius", "tanh", "most"), EVALUATIONS)
def test_evaluations(x64, history, radius, tanh, most):
    A, b = problems(radius)

    def f(z):
        y = jnp.einsum("bij,bj->bi", A, z) + b
        return jnp.tanh(y) if tanh else y

    solver = Anderson(history=history, atol=1e-6, rtol=0.0, max_steps=1000)
    value, stats = jax.jit(lambda z0: fixed_point(f, z0, solver=solver))(jnp.zeros_like(b))
    assert stats.converged.all()
    assert (np.linalg.norm(f(value) - value, axis=1) <= 1.01e-6).all()
    assert np.median(stats.evaluations) <= most


def test_solves_where_plain_iteration_diverges(x64):
    A, b = problems(1.5, n=12)
    f = lambda z: jnp.einsum("bij,bj->bi", A, z) + b  # noqa: E731
    value = fixed_point(f, jnp.zeros_like(b), solver=Anderson(history=12, rtol=1e-10, max_steps=200)).check()
    np.testing.assert_allclose(value, np.linalg.solve(np.eye(12) - A, b[..., None])[..., 0], rtol=1e-7)


def test_a_full_history_solves_a_linear_problem_in_n_plus_two_evaluations(x64):
    A, b = problems(0.99, n=6)
    f = lambda z: jnp.einsum("bij,bj->bi", A, z) + b  # noqa: E731
    stats = fixed_point(f, jnp.zeros_like(b), solver=Anderson(history=6, rtol=1e-8)).stats
    assert (stats.steps <= 6 + 2).all()


def test_half_precision_states_converge_to_their_floor():
    b = jnp.linspace(-1, 1, 16, dtype=jnp.bfloat16).reshape(2, 8)
    value, stats = fixed_point(lambda z: jnp.tanh(0.5 * z + b), jnp.zeros_like(b), solver=Anderson(rtol=1e-2))
    assert value.dtype == jnp.bfloat16
    assert stats.residual.dtype == jnp.float32
    assert stats.converged.all()


def contractions(n=32, batch=6):
    """Maps whose Lipschitz constant is at most 0.99, six of each kind."""

    def stack(make):
        return jnp.asarray(np.stack([make(np.random.default_rng(seed)) for seed in range(batch)]))

    def orthogonal(generator):
        return np.linalg.qr(generator.standard_normal((n, n)))[0]

    def gaussian(generator):
        a = generator.standard_normal((n, n))
        return a / np.linalg.norm(a, 2)

    def symmetric(generator, lowest):
        q = orthogonal(generator)
        return q @ np.diag(np.linspace(lowest, 1, n)) @ q.T

    b = stack(lambda generator: generator.standard_normal(n))
    matrices = {
        "gaussian": stack(gaussian),
        "orthogonal": stack(orthogonal),
        "symmetric": stack(lambda generator: symmetric(generator, -1)),
        "positive": stack(lambda generator: symmetric(generator, 0)),
        "shift": stack(lambda _: np.roll(np.eye(n), 1, 0)),
    }
    outer = {
        "affine": lambda u: u,
        "tanh": jnp.tanh,
        "relu": jax.nn.relu,
        "abs": jnp.abs,
        "shrink": lambda u: jnp.sign(u) * jax.nn.relu(jnp.abs(u) - 0.5),
        "clip": lambda u: jnp.clip(u, -0.7, 0.7),
        "sin": lambda u: jnp.sin(3 * u) / 3,
    }
    for matrix in matrices:
        for function in outer:
            if function == "affine" or matrix in ("gaussian", "orthogonal"):
                for rate in (0.5, 0.9, 0.99):
                    A, g = rate * matrices[matrix], outer[function]
                    yield f"{function} {matrix} {rate}", (lambda z, A=A, g=g: g(jnp.einsum("bij,bj->bi", A, z) + b)), jnp.zeros_like(b)


@pytest.mark.parametrize("history", [5, 20])
def test_on_contractions_it_is_hardly_ever_behind_plain_iteration(x64, history):
    """At most 1.1 times the evaluations of plain iteration, on every sample of 51 families of contractions, kinks included."""
    problems = list(contractions())
    functions, guesses = [f for _, f, _ in problems], [z0 for *_, z0 in problems]
    assert len(problems) == 51

    def together(z):  # one batch, so that one compilation serves all
        return jnp.concatenate([f(part) for f, part in zip(functions, jnp.split(z, len(functions)), strict=True)])

    def evaluations(solver):
        stats = jax.jit(lambda z0: fixed_point(together, z0, solver=solver).stats)(jnp.concatenate(guesses))
        assert stats.converged.all()
        return np.asarray(stats.evaluations)

    stop = {"rtol": 1e-8, "max_steps": 3000}
    ratio = evaluations(Anderson(history=history, **stop)) / evaluations(Picard(**stop))
    assert ratio.max() <= 1.1
    assert np.median(ratio) < 1


def test_where_plain_iteration_ends_by_itself_it_takes_more(x64):
    """The exception to the above: of a nilpotent map plain iteration visits the solution after n steps, and mixing carries errors on."""
    b = jnp.asarray(np.random.default_rng(0).standard_normal((4, 32)))
    f = lambda z: 0.9 * jnp.pad(z[:, 1:], ((0, 0), (0, 1))) + b  # noqa: E731
    plain = fixed_point(f, jnp.zeros_like(b), solver=Picard(rtol=1e-8, max_steps=100)).stats
    mixed = fixed_point(f, jnp.zeros_like(b), solver=Anderson(rtol=1e-8, max_steps=200)).stats
    assert (plain.evaluations == 33).all()
    assert mixed.converged.all()
    assert (mixed.evaluations <= 2.5 * plain.evaluations).all()
