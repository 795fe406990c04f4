"""The tables that the property tests of this folder run over: a new member of a family is tested by adding one row."""

import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import (
    GMRES,
    Anderson,
    BiCGStab,
    Broyden,
    Dense,
    Gradient,
    Implicit,
    JacobianFree,
    JaxoptAnderson,
    LinearFixedPoint,
    LinearSolver,
    Neumann,
    Newton,
    Phantom,
    Picard,
    Reversible,
    ReversibleAdjoint,
    Shine,
    Solver,
    TruncatedNeumann,
    Unrolled,
)

SOLVERS: dict[str, Solver] = {
    "picard damped": Picard(damping=0.8),
    "anderson": Anderson(),
    "anderson damped": Anderson(history=2, damping=0.7),
    "broyden": Broyden(),
    "broyden wrapping": Broyden(memory=3),
    "newton": Newton(),
    "newton chord": Newton(refresh=3, linear=BiCGStab()),
    "reversible": Reversible(),
    # One of jaxopt's for all three: they share their adapter, and test_from_jaxopt.py holds each against jaxopt itself.
    "jaxopt anderson": JaxoptAnderson(history=3, mixing_frequency=2, damping=0.8),
}

LINEAR: dict[str, LinearSolver] = {
    "gmres": GMRES(restart=30, max_steps=300),
    "gmres restarted": GMRES(restart=7, max_steps=300),
    "bicgstab": BiCGStab(max_steps=300),
    "dense": Dense(),
    "neumann": Neumann(max_steps=500),
    "fixed point": LinearFixedPoint(solver=Broyden(memory=30), max_steps=300),
}

# gradient, and a solver that it works with
GRADIENTS: dict[str, tuple[Gradient, Solver]] = {
    "implicit": (Implicit(linear=GMRES(rtol=1e-13, restart=30, max_steps=300)), Anderson()),
    "jacobian free": (JacobianFree(), Anderson()),
    "truncated": (TruncatedNeumann(steps=150), Anderson()),
    "phantom": (Phantom(steps=250, damping=0.9), Anderson()),
    "shine": (Shine(), Broyden()),
    "shine refined": (Shine(refine=20), Broyden()),
    "unrolled": (Unrolled(), Picard()),
    "unrolled, every": (Unrolled(checkpoint="every"), Anderson()),
    "unrolled, sqrt": (Unrolled(checkpoint="sqrt"), Broyden(memory=4)),
    "unrolled reversible": (Unrolled(), Reversible()),
    "reversible": (ReversibleAdjoint(), Reversible(damping=0.4)),
}


@pytest.fixture(params=GRADIENTS.values(), ids=GRADIENTS.keys())
def gradient_and_solver(request):
    return request.param


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
