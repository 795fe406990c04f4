"""`fixed_point` as it stands in plain JAX, Flax NNX, Flax Linen, Equinox and Haiku; `implicit_diff` around the solvers of others."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
import scipy.optimize
from flax import nnx

from deqflow.implicit import GMRES, Dense, Implicit, Picard, fixed_point, implicit_diff

WIDTH = 4
EXACT = Implicit(linear=Dense())


def solved(f, x):
    return fixed_point(f, jnp.zeros_like(x), solver=Picard(rtol=1e-13, max_steps=200), gradient=Implicit(linear=GMRES(rtol=1e-13))).value


def unrolled(f, x):
    return jax.lax.scan(lambda z, _: (f(z), None), jnp.zeros_like(x), length=150)[0]


def loss(z):
    return jnp.sum(jnp.sin(z) * jnp.arange(1.0, WIDTH + 1))


def plain(find, x):
    def solve(parameters):
        return loss(find(lambda z: jnp.tanh(0.3 * z @ parameters["W"] + parameters["b"] + x), x))

    W = jax.random.normal(jax.random.key(0), (WIDTH, WIDTH))
    return jax.jit(jax.grad(solve))({"W": W, "b": jnp.ones(WIDTH)})


def flax_nnx(find, x):
    class Equilibrium(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(WIDTH, WIDTH, param_dtype=jnp.float64, rngs=rngs)
            self.scale = nnx.Param(jnp.full(WIDTH, 0.3))

        def __call__(self, x):
            return find(lambda z: jnp.tanh(self.scale * self.linear(z) + x), x)

    return nnx.to_pure_dict(nnx.jit(nnx.grad(lambda model: loss(model(x))))(Equilibrium(nnx.Rngs(0))))


def flax_linen(find, x):
    cell = nn.Dense(WIDTH, param_dtype=jnp.float64)

    def solve(variables):
        return loss(find(lambda z: jnp.tanh(0.3 * cell.apply(variables, z) + x), x))

    return jax.jit(jax.grad(solve))(cell.init(jax.random.key(0), x))


def flax_linen_inside_a_module(find, x):
    class Equilibrium(nn.Module):
        @nn.compact
        def __call__(self, x):
            linear = nn.Dense(WIDTH, param_dtype=jnp.float64)
            linear(x)  # makes the parameters, outside of the solve
            return find(lambda z: jnp.tanh(0.3 * linear(z) + x), x)

    model = Equilibrium()
    return jax.jit(jax.grad(lambda variables: loss(model.apply(variables, x))))(model.init(jax.random.key(0), x))


def equinox(find, x):
    class Equilibrium(eqx.Module):
        linear: eqx.nn.Linear
        activation: callable = jnp.tanh

        def __call__(self, x):
            return find(lambda z: self.activation(0.3 * jax.vmap(self.linear)(z) + x), x)

    model = Equilibrium(eqx.nn.Linear(WIDTH, WIDTH, dtype=jnp.float64, key=jax.random.key(0)))
    return jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(lambda model: loss(model(x))))(model))


def haiku(find, x):
    cell = hk.without_apply_rng(hk.transform(lambda z: hk.Linear(WIDTH)(z)))

    def solve(parameters):
        return loss(find(lambda z: jnp.tanh(0.3 * cell.apply(parameters, z) + x), x))

    return jax.jit(jax.grad(solve))(cell.init(jax.random.key(0), x))


def haiku_inside_a_module(find, x):
    def equilibrium(x):
        linear = hk.Linear(WIDTH)
        linear(x)  # makes the parameters, outside of the solve
        return find(lambda z: jnp.tanh(0.3 * linear(z) + x), x)

    model = hk.without_apply_rng(hk.transform(equilibrium))
    return jax.jit(jax.grad(lambda parameters: loss(model.apply(parameters, x))))(model.init(jax.random.key(0), x))


FRAMEWORKS = [plain, flax_nnx, flax_linen, flax_linen_inside_a_module, equinox, haiku, haiku_inside_a_module]


@pytest.mark.parametrize("gradient_with", FRAMEWORKS, ids=lambda f: f.__name__)
def test_the_gradient_of_the_parameters_is_that_of_unrolling(x64, normal, gradient_with):
    x = normal(3, WIDTH)
    got, want = gradient_with(solved, x), gradient_with(unrolled, x)
    assert len(jax.tree.leaves(want)) >= 2
    for leaf in jax.tree.leaves(want):
        assert leaf.dtype == jnp.float64
        assert np.abs(leaf).max() > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, want)


def cell(y, W, x):
    return jnp.tanh(W @ y + x)


def equation(y, W, x):
    return y - cell(y, W, x)


def with_scipy(W, x):
    def solve(W, x):
        found = scipy.optimize.root(lambda y: y - np.tanh(W @ y + x), np.zeros_like(x), tol=1e-13)
        assert found.success, found.message
        return found.x

    return jax.pure_callback(solve, jax.ShapeDtypeStruct(x.shape, x.dtype), W, x, vmap_method="sequential")


def with_optimistix_fixed_point(W, x):
    solver = optimistix.FixedPointIteration(rtol=1e-13, atol=1e-13)
    return optimistix.fixed_point(lambda y, _: cell(y, W, x), solver, jnp.zeros_like(x)).value


def with_optimistix_root(W, x):
    return optimistix.root_find(lambda y, _: equation(y, W, x), optimistix.Newton(rtol=1e-13, atol=1e-13), jnp.zeros_like(x)).value


def with_a_loop(W, x):
    def proceed(state):
        return jnp.any(jnp.abs(state[1]) > 1e-14)

    def step(state):
        y = state[0] - state[1]
        return y, equation(y, W, x)

    # This loop has no derivative in reverse mode.
    return jax.lax.while_loop(proceed, step, (x, equation(x, W, x)))[0]


SOLVES = [with_scipy, with_optimistix_fixed_point, with_optimistix_root, with_a_loop]
TRANSFORMS = {
    "jit": jax.jit,
    "jit of vmap": lambda f: jax.jit(lambda W, x: jax.vmap(f)(jnp.stack([W, 0.5 * W, -W]), jnp.stack([x, 2 * x, x]))),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("solve", SOLVES, ids=lambda f: f.__name__)
def test_a_decorated_solver_differentiates_like_unrolled_steps(x64, matrix, normal, solve, transform):
    W, x = matrix(0.6, n=WIDTH), normal(WIDTH)
    decorated = implicit_diff(equation, gradient=EXACT, batched=False)(solve)
    assert decorated.__name__ == solve.__name__

    def by_steps(W, x):
        return jax.lax.scan(lambda y, _: (cell(y, W, x), None), jnp.zeros_like(x), length=150)[0]

    def value_and_gradient(find):
        return transform(jax.value_and_grad(lambda W, x: loss(find(W, x)), (0, 1)))(W, x)

    got, want = value_and_gradient(decorated), value_and_gradient(by_steps)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, want)


@pytest.mark.parametrize("solve", SOLVES, ids=lambda f: f.__name__)
def test_a_decorated_solver_has_the_jacobian_of_the_theorem_in_forward_mode(x64, matrix, normal, solve):
    W, x = matrix(0.6, n=WIDTH), normal(WIDTH)
    decorated = implicit_diff(equation, gradient=EXACT, batched=False)(solve)
    y = decorated(W, x)
    np.testing.assert_allclose(y, cell(y, W, x), atol=1e-12)
    slope = np.diag(1 - np.asarray(y) ** 2)
    want = np.linalg.solve(np.eye(WIDTH) - slope @ W, slope)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(decorated, 1))(W, x), want, rtol=1e-9)
