"""Every estimator against the exact log-determinant: values, gradients, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.flows import ArnoldiQuadrature, Exact, PowerSeries, RussianRoulette, log_det
from deqflow.flows.arnoldi_quadrature import log_and_inverse

N = 6


def problem(norm=0.9, dtype=jnp.float64, batch=5, n=N):
    """A nonlinear map of this Lipschitz constant, its parameter and a batch."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, n))
    A = jnp.asarray(A * norm / np.linalg.norm(A, 2), dtype)
    return lambda A: lambda x: jnp.sin(x @ A.T), A, jnp.asarray(rng.standard_normal((batch, n)), dtype)


def value_and_gradient(estimator, g, A, x, key, weights):
    """The values, and the gradient with respect to A and x of their weighted sum."""

    @jax.jit
    def run(A, x, key):
        def total(A, x):
            value, error = log_det(g(A), x, estimator, key)
            return weights @ value, (value, error)

        return jax.value_and_grad(total, (0, 1), has_aux=True)(A, x)

    (_, (value, error)), gradient = run(A, x, key)
    return value, error, gradient


FULL = {"probes": N, "orthogonal": True}
CONVERGED = [
    ArnoldiQuadrature(steps=N, nodes=32, **FULL),
    PowerSeries(terms=80, **FULL),
    PowerSeries(terms=80, linear=None, **FULL),
    RussianRoulette(exact_terms=80, linear=None, **FULL),
]


@pytest.mark.parametrize("estimator", CONVERGED, ids=lambda e: f"{type(e).__name__}-{'solve' if getattr(e, 'linear', None) else 'own'}")
def test_a_full_basis_of_probes_is_exact(x64, estimator):
    """Value and gradient, with a weight per sample: one sample's weight is not everybody's."""
    g, A, x = problem()
    weights = jnp.arange(1.0, 6.0)
    want, zero, slopes = value_and_gradient(Exact(), g, A, x, None, weights)
    jacobians = jax.vmap(jax.jacobian(lambda x: g(A)(x)))(x)
    np.testing.assert_allclose(want, np.linalg.slogdet(np.eye(N) + jacobians)[1], atol=1e-13)
    assert (zero == 0).all()
    value, _, gradient = value_and_gradient(estimator, g, A, x, jax.random.key(1), weights)
    np.testing.assert_allclose(value, want, atol=1e-6)
    for got, slope in zip(gradient, slopes, strict=True):
        np.testing.assert_allclose(got, slope, atol=1e-4 * np.abs(slope).max())


def test_exact_gradient_against_finite_differences(x64):
    g, A, x = problem()
    weights = jnp.linspace(-1, 2, 5)
    _, _, (slope, _) = value_and_gradient(Exact(), g, A, x, None, weights)
    direction = jnp.asarray(np.random.default_rng(1).standard_normal(A.shape))
    ahead, behind = (weights @ log_det(g(A + s * direction), x).value for s in (1e-6, -1e-6))
    np.testing.assert_allclose(jnp.vdot(slope, direction), (ahead - behind) / 2e-6, rtol=1e-7)


@pytest.mark.parametrize("linear", ["solve", "series"])
@pytest.mark.parametrize("law", ["geometric", "poisson"])
def test_roulette_is_unbiased(x64, law, linear):
    """Mean value and mean gradient within four standard errors, though two of three expected terms are left to chance."""
    g, A, x = problem(norm=0.7, batch=2)
    estimator = RussianRoulette(law=law, mean=2.0, exact_terms=1, probes=8000)
    estimator = estimator if linear == "solve" else dataclasses.replace(estimator, linear=None)
    weights = jnp.asarray([1.0, -2.0])
    want, _, (slope, _) = value_and_gradient(Exact(), g, A, x, None, weights)
    value, error, _ = value_and_gradient(estimator, g, A, x, jax.random.key(0), weights)
    assert (np.abs(value - want) <= 4 * error).all()
    assert (error < 0.05).all()

    few = dataclasses.replace(estimator, probes=200)
    gradient = jax.jit(jax.grad(lambda A, key: weights @ log_det(g(A), x, few, key).value))
    gradients = jnp.stack([gradient(A, key) for key in jax.random.split(jax.random.key(1), 40)])
    spread = gradients.std(0, ddof=1) / 40**0.5
    assert (np.abs(gradients.mean(0) - slope) <= 4.5 * spread).mean() > 0.97


def test_roulette_weighs_terms_by_the_probability_that_they_are_there(x64):
    """One off, and the mean would be that of another series."""
    for law in ("geometric", "poisson"):
        estimator = RussianRoulette(law=law, mean=2.0, exact_terms=1)
        draws = np.asarray(estimator._draw(jax.random.key(0), 100_000))
        assert abs(draws.mean() - 2) < 0.03
        for j in range(6):
            probability = float(estimator._tail(jnp.asarray(j)))
            assert abs((draws >= j).mean() - probability) <= 4 * (probability * (1 - probability) / 1e5) ** 0.5


def test_a_series_is_within_its_truncation_bound(x64):
    g, A, x = problem(norm=0.8)
    want = log_det(g(A), x).value
    for terms in (2, 5, 10):
        estimator = PowerSeries(terms=terms, **FULL)
        error = np.abs(log_det(g(A), x, estimator, jax.random.key(0)).value - want)
        assert (error <= estimator.truncation_bound(N, 0.8)).all()
    assert PowerSeries().truncation_bound(N, 1.0) == np.inf


def jacobian(kind, n, norm, rng):
    a = rng.standard_normal((n, n))
    if kind == "symmetric":
        a = a + a.T
    if kind == "orthogonal":
        a = np.linalg.qr(a)[0]
    return a * norm / np.linalg.norm(a, 2)


def logarithm(A, v):
    """`vᵀ log(I + A) v` by eigenvectors."""
    values, vectors = np.linalg.eig(np.eye(len(A)) + A)
    return np.real(v @ (vectors * np.log(values)) @ np.linalg.solve(vectors, v))


@pytest.mark.parametrize(("kind", "ratio"), [("symmetric", 0.1), ("gaussian", 1.0), ("orthogonal", 1.0)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_arnoldi_beats_the_series_at_equal_products(x64, kind, ratio, dtype):
    """Sixteen products with matrices of norm 0.98, the same probes: root-mean-square errors against the logarithm in float64."""
    rng = np.random.default_rng(0)
    matrices = np.stack([jacobian(kind, 64, 0.98, rng) for _ in range(8)])
    v = rng.choice([-1.0, 1.0], (8, 64))
    want = np.array([logarithm(A.T, probe) for A, probe in zip(matrices, v, strict=True)])
    A = jnp.asarray(matrices, dtype)
    transpose = lambda w: jnp.einsum("bji,bj->bi", A, w, precision="highest")  # noqa: E731
    estimate = lambda estimator: jax.jit(lambda v: estimator.moment(transpose, v, jax.random.key(0), 1).value)(jnp.asarray(v, dtype))  # noqa: E731
    arnoldi, series = estimate(ArnoldiQuadrature(steps=16, nodes=32)), estimate(PowerSeries(terms=16))
    error = lambda value: float(np.sqrt(np.mean((np.asarray(value, float) - want) ** 2)))  # noqa: E731
    assert error(arnoldi) <= ratio * error(series)
    assert arnoldi.dtype == dtype


def test_reorthogonalisation_keeps_float32_accurate(x64):
    """The same basis in both precisions, at norm 0.95 and 32 steps."""
    rng = np.random.default_rng(1)
    A = np.stack([jacobian("gaussian", 40, 0.95, rng) for _ in range(4)])
    v = rng.choice([-1.0, 1.0], (4, 40))
    estimator = ArnoldiQuadrature(steps=32, nodes=32)

    def value(dtype):
        a = jnp.asarray(A, dtype)
        transpose = lambda w: jnp.einsum("bji,bj->bi", a, w, precision="highest")  # noqa: E731
        return jax.jit(lambda v: estimator.moment(transpose, v, jax.random.key(0), 1).value)(jnp.asarray(v, dtype))

    np.testing.assert_allclose(value(jnp.float32), value(jnp.float64), atol=1e-4)


@pytest.mark.parametrize(("norm", "nodes", "tolerance"), [(0.9, 16, 1e-7), (0.98, 32, 1e-6)])
def test_the_small_logarithm(x64, norm, nodes, tolerance):
    """Of Hessenberg matrices, against the eigenvalues; the inverse against LU."""
    rng = np.random.default_rng(2)
    h = np.triu(rng.standard_normal((3, 7, 7)), -1)
    h *= norm / np.linalg.norm(h, 2, axis=(1, 2))[:, None, None]
    h[2, 4, 3] = 0  # an invariant subspace
    h[1] = -norm * np.eye(7)
    value, inverse = log_and_inverse(jnp.asarray(h), nodes)
    e = np.eye(7)[0]
    np.testing.assert_allclose(value, [logarithm(a, e) for a in h], atol=tolerance)
    np.testing.assert_allclose(inverse, np.linalg.solve(np.eye(7) + h, np.broadcast_to(e[:, None], (3, 7, 1)))[:, :, 0], rtol=1e-12)


def test_gradient_memory_does_not_grow_with_the_terms():
    g, A, x = problem(dtype=jnp.float32, batch=256, n=32)

    def temporaries(estimator):
        run = jax.grad(lambda A, x: log_det(g(A), x, estimator, jax.random.key(0)).value.sum(), (0, 1))
        analysis = jax.jit(run).lower(A, x).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporaries(PowerSeries(terms=64)) == temporaries(PowerSeries(terms=4))
    assert temporaries(RussianRoulette(exact_terms=64)) == temporaries(RussianRoulette(exact_terms=4))


def test_standard_error_is_that_of_the_mean(x64):
    """Over 200 repetitions, the values scatter as their standard errors say."""
    g, A, x = problem(norm=0.5, batch=1)
    estimator = ArnoldiQuadrature(steps=4, probes=8)
    run = jax.jit(jax.vmap(lambda key: log_det(g(A), x, estimator, key)))
    value, error = run(jax.random.split(jax.random.key(0), 200))
    np.testing.assert_allclose(value.std(), np.sqrt(np.mean(error**2)), rtol=0.2)
    assert np.isnan(log_det(g(A), x, ArnoldiQuadrature(), jax.random.key(0)).standard_error).all()


def test_samples_do_not_depend_on_their_neighbours():
    g, A, x = problem(dtype=jnp.float32)
    others = jnp.flip(x, 0)
    for estimator in (Exact(), ArnoldiQuadrature(probes=2), PowerSeries(), RussianRoulette()):
        run = jax.jit(lambda x, e=estimator: log_det(g(A), x, e, jax.random.key(0)).value)
        assert run(x)[2] == run(others)[2]


def test_bad_input(x64):
    g, A, x = problem()
    with pytest.raises(ValueError, match="draws random probes: pass key="):
        log_det(g(A), x, ArnoldiQuadrature())
    with pytest.raises(ValueError, match="g must keep shape and type"):
        log_det(lambda x: x[:, :2], x)
    with pytest.raises(ValueError, match="at most 6 probes of 6 dimensions"):
        log_det(g(A), x, PowerSeries(probes=7, orthogonal=True), jax.random.key(0))
    with pytest.raises(ValueError, match="more than max_size=4"):
        log_det(g(A), x, Exact(max_size=4))
    with pytest.raises(ValueError, match="terms must be >= 1"):
        PowerSeries(terms=0)
