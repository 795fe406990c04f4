"""Norms from one vector norm to another, against the corners of unit balls and against many directions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.nn import Activation, Linear, MixedNormLimit, lipschitz_bound
from deqflow.nn.certificate import mixed_norm

NORMS = {"l1": 1, "l2": 2, "linf": np.inf}
PAIRS = [pair for pair in itertools.product(NORMS, NORMS) if pair != ("l2", "l2")]


def brute_force(matrix, p, q):
    """The largest `‖x W‖_q` over the corners of p's unit ball, where it is; over many directions and the best of each output else."""
    n = len(matrix)
    if p == "l1":
        x = np.eye(n)
    elif p == "linf":
        x = np.array(list(itertools.product([-1.0, 1.0], repeat=n)))
    else:
        x = np.concatenate([np.random.default_rng(1).standard_normal((20_000, n)), matrix.T])
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.linalg.norm(x @ matrix, NORMS[q], axis=1).max()


@pytest.mark.parametrize("p, q", PAIRS)
def test_bound_is_above_the_norm_and_is_it_where_that_is_cheap(x64, p, q):
    rng = np.random.default_rng(0)
    for shape in [(5, 7), (7, 3), (4, 1), (1, 4)]:
        matrix = rng.standard_normal(shape)
        norm, bound = brute_force(matrix, p, q), mixed_norm(matrix, p, q)
        assert norm <= bound
        if p == "l1" or q == "linf":
            np.testing.assert_allclose(norm, bound, rtol=1e-12)
        weight = MixedNormLimit(jnp.asarray(matrix), domain=p, codomain=q, limit=0.5)
        np.testing.assert_allclose(mixed_norm(weight(), p, q), 0.5, rtol=1e-10)
        assert mixed_norm(weight(), p, q) <= 0.5
        small = MixedNormLimit(jnp.asarray(0.4 / bound * matrix), domain=p, codomain=q, limit=0.5)
        np.testing.assert_array_equal(small(), small.kernel[...])


@jax.jit
@jax.value_and_grad
def of_all(kernel):
    """A function of the weights of every pair of norms, and its slope."""
    return sum(jnp.sum(jnp.sin(3 * MixedNormLimit(kernel, domain=p, codomain=q)())) for p, q in PAIRS)


def test_derivative_is_that_of_the_whole_map(x64):
    kernel, direction = jax.random.normal(jax.random.key(0), (2, 5, 3), jnp.float64)
    numeric = (of_all(kernel + 1e-6 * direction)[0] - of_all(kernel - 1e-6 * direction)[0]) / 2e-6
    np.testing.assert_allclose(jnp.vdot(of_all(kernel)[1], direction), numeric, rtol=1e-6)


def test_finite_at_extreme_weights():
    for size in [0.0, 1e-30, 1e30]:
        value, slope = of_all(jnp.full((3, 2), size, jnp.float32))
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


def chain(*norms, activation="sincos"):
    """Layers whose norms meet, with an activation between them."""
    parts, size = [], 3
    for index, (p, q) in enumerate(itertools.pairwise(norms)):
        last = index == len(norms) - 2
        parametrise = lambda kernel: MixedNormLimit(10 * kernel, domain=p, codomain=q, limit=0.99)  # noqa: B023, E731
        parts.append(Linear(size, 3 if last else 4, parametrise=parametrise, rngs=nnx.Rngs(index)))
        if not last:
            parts.append(Activation(activation))
            size = 4 * parts[-1].widening
    return parts


CHAINS = [
    (("l2", "linf", "linf", "l2"), "clipswish"),
    (("l2", "linf", "l1", "l2"), "sincos"),
    (("l2", "l1", "l2"), "clipswish"),
    (("l2", "l1", "l2"), "maxmin"),
]


@pytest.mark.parametrize("norms, activation", CHAINS)
def test_a_chain_that_ends_in_the_norm_it_starts_in_is_certified(x64, norms, activation):
    parts = chain(*norms, activation=activation)
    bound = lipschitz_bound(parts)
    widening = np.sqrt(parts[1].widening) ** norms.count("l1")
    assert bound <= 0.99 ** (len(norms) - 1) * widening * (1 + 1e-12)
    jacobian = jax.jit(jax.vmap(jax.jacobian(nnx.Sequential(*parts))))(jax.random.normal(jax.random.key(0), (200, 3)))
    norm = np.linalg.norm(jacobian, 2, axis=(1, 2)).max()
    assert 0.01 <= norm <= bound


def test_norms_that_do_not_meet_leave_the_euclidean_product():
    euclidean = lambda parts: np.prod([lipschitz_bound(part) for part in parts])  # noqa: E731
    for norms in [("l2", "linf"), ("linf", "linf"), ("linf", "l2")]:
        parts = chain(*norms)
        assert lipschitz_bound(parts) == euclidean(parts)
    parts = [*chain("l2", "linf"), Activation("sine"), *chain("l1", "l2")]
    assert lipschitz_bound(parts) == euclidean(parts)
    hidden = chain("l2", "linf", "l2")
    assert lipschitz_bound([hidden[0], jnp.sin, hidden[2]]) == np.inf


def test_bad_arguments():
    with pytest.raises(ValueError, match="NormLimit bounds the spectral norm"):
        MixedNormLimit(jnp.ones((2, 2)), domain="l2", codomain="l2")
    with pytest.raises(ValueError, match="takes matrices, got a kernel of shape"):
        MixedNormLimit(jnp.ones((3, 3, 2, 2)), domain="l1", codomain="l2")
    with pytest.raises(ValueError, match="limit must be > 0"):
        MixedNormLimit(jnp.ones((2, 2)), domain="l1", codomain="l2", limit=0.0)
