"""The tables that the property tests of this folder run over: a new solver or linear solver is tested by adding one row."""

import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import GMRES, Anderson, LinearSolver, Picard, Solver

SOLVERS: dict[str, Solver] = {
    "picard damped": Picard(damping=0.8),
    "anderson": Anderson(),
    "anderson damped": Anderson(history=2, damping=0.7),
}

LINEAR: dict[str, LinearSolver] = {
    "gmres": GMRES(restart=30, max_steps=300),
    "gmres restarted": GMRES(restart=7, max_steps=300),
}


@pytest.fixture(params=list(SOLVERS.values()), ids=list(SOLVERS))
def solver(request):
    return request.param


@pytest.fixture(params=list(LINEAR.values()), ids=list(LINEAR))
def linear(request):
    return request.param


@pytest.fixture
def matrix():
    """A normal random matrix scaled to a spectral radius, as `matrix(radius, n, seed)`."""

    def make(radius, n=8, seed=0):
        A = np.random.default_rng(seed).standard_normal((n, n))
        return jnp.asarray(A * radius / np.abs(np.linalg.eigvals(A)).max())

    return make


@pytest.fixture
def normal():
    """Standard normal numbers, as `normal(*shape, seed=...)`."""
    return lambda *shape, seed=1: jnp.asarray(np.random.default_rng(seed).standard_normal(shape))
