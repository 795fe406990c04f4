"""A state of any shape is solved and differentiated as the vector that it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit import (
    Anderson,
    BiCGStab,
    Broyden,
    Implicit,
    JaxoptAnderson,
    Newton,
    Phantom,
    Picard,
    Reversible,
    ReversibleAdjoint,
    Shine,
    Unrolled,
    diagnose,
    fixed_point,
)

SHAPES = ((2, 12), (2, 3, 2, 2))

PAIRS = {
    "picard, phantom": (Picard(damping=0.8), Phantom()),
    "anderson, implicit": (Anderson(damping=0.9), Implicit(linear=BiCGStab())),
    "broyden, shine": (Broyden(memory=3), Shine(refine=3)),
    "newton, implicit": (Newton(), Implicit()),
    "reversible": (Reversible(), ReversibleAdjoint()),
    "anderson, unrolled": (Anderson(history=2), Unrolled(checkpoint="sqrt")),
    "jaxopt anderson": (JaxoptAnderson(), Implicit()),
}


@pytest.fixture
def problem(x64, normal):
    W, b = 0.6 * jnp.linalg.qr(normal(12, 12))[0], normal(2, 12, seed=2)
    return lambda z, b=b: jnp.tanh(z.reshape(2, 12) @ W + b).reshape(z.shape), b


@pytest.mark.parametrize(("solver", "gradient"), PAIRS.values(), ids=PAIRS)
def test_solution_and_gradient_do_not_depend_on_the_shape(problem, solver, gradient):
    f, b = problem

    def loss(b, shape):
        value, stats = fixed_point(lambda z: f(z, b), jnp.zeros(shape), solver=solver, gradient=gradient)
        return jnp.sum(value**3), (value.reshape(2, 12), stats.steps)

    (flat, shaped) = (jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(b, shape) for shape in SHAPES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), flat, shaped)


def test_linear_solvers_take_any_shape(x64, linear, normal):
    A, b = jnp.eye(12) + 0.1 * normal(12, 12), normal(2, 12, seed=2)
    apply = lambda v: (v.reshape(2, 12) @ A.T).reshape(v.shape)  # noqa: E731
    flat, shaped = (jax.jit(lambda b: linear.solve(apply, b))(b.reshape(shape)) for shape in SHAPES)
    assert shaped.value.shape == SHAPES[1]
    np.testing.assert_allclose(shaped.value.reshape(2, 12), flat.value, rtol=1e-9)
    np.testing.assert_array_equal(shaped.stats.evaluations, flat.stats.evaluations)


def test_diagnosis_does_not_depend_on_the_shape(problem):
    f, _ = problem
    flat, shaped = (diagnose(f, jnp.zeros(shape), key=jax.random.key(0), solver=Picard(rtol=1e-10)) for shape in SHAPES)
    np.testing.assert_allclose(shaped.spectral_radius, flat.spectral_radius, rtol=1e-6)
    np.testing.assert_allclose(shaped.condition, flat.condition, rtol=1e-6)
