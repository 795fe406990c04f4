import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.implicit import Anderson, Picard, fixed_point, implicit_diff


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda z: z[:, :1], r"expected float32\[2, 3\], got float32\[2, 1\]"),
        (lambda z: z.astype(jnp.float16), r"got float16"),
        (lambda z: (z, z), "structure"),
    ],
)
def test_a_function_that_does_not_return_what_it_takes(f, message):
    with pytest.raises(ValueError, match=message):
        fixed_point(f, jnp.ones((2, 3)))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="int32"):
        fixed_point(lambda z: z, jnp.arange(3))


def test_a_non_finite_guess_is_flagged_and_replaced():
    value, stats = fixed_point(lambda z: 0.5 * z + 1, jnp.array([[0.0], [jnp.nan]]))
    assert list(stats.failed) == [False, True]
    assert np.isfinite(value).all()


def test_a_tolerance_below_the_floor_warns():
    with pytest.warns(UserWarning, match="rounding floor"):
        fixed_point(lambda z: 0.5 * z, jnp.ones((1, 2)), solver=Anderson(rtol=1e-9))


def test_nothing_is_kept_alive_outside_of_jit():
    def solve():
        W = jnp.eye(3) * 0.5
        fixed_point(lambda z: z @ W + 1, jnp.zeros((1, 3)))
        return weakref.ref(W)

    reference = solve()
    gc.collect()
    assert reference() is None


def test_flax_modules_in_the_closure(normal):
    """`nnx.grad` of a module used in the map, against unrolling."""
    linear = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    x = normal(3, 4).astype(jnp.float32)

    def solve(linear):
        solver = Picard(rtol=1e-6, max_steps=200)
        return fixed_point(lambda z: jnp.tanh(0.4 * linear(z) + x), jnp.zeros_like(x), solver=solver).value.sum()

    def unroll(linear):
        z = jnp.zeros_like(x)
        for _ in range(60):
            z = jnp.tanh(0.4 * linear(z) + x)
        return z.sum()

    got, want = nnx.jit(nnx.grad(solve))(linear), nnx.jit(nnx.grad(unroll))(linear)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_implicit_diff_attaches_to_a_solution_from_anywhere(x64):
    def root(params):
        y = jnp.sqrt(jax.lax.stop_gradient(params["a"])) / params["b"]  # its own derivative must not matter
        return implicit_diff(lambda y, p: {"r": (p["b"] * y["r"]) ** 2 - p["a"]}, {"r": y}, params)["r"]

    params = {"a": jnp.array([4.0, 9.0]), "b": jnp.array([1.0, 2.0])}
    np.testing.assert_allclose(root(params), [2.0, 1.5])
    gradient = jax.jit(jax.grad(lambda p: root(p).sum()))(params)
    np.testing.assert_allclose(gradient["a"], [0.25, 1 / 12])
    np.testing.assert_allclose(gradient["b"], [-2.0, -0.75])
    hessian = jax.jit(jax.hessian(lambda a: root({"a": a, "b": params["b"]}).sum()))(params["a"])
    np.testing.assert_allclose(hessian, np.diag([-1 / 32, -1 / 216]), atol=1e-12)


def test_implicit_diff_of_a_coupled_system(x64):
    """The local inverse of the complex squaring map at (1, 1)."""
    square = lambda y: jnp.array([y[0] ** 2 - y[1] ** 2, 2 * y[0] * y[1]])  # noqa: E731
    inverse = lambda x: implicit_diff(lambda y, x: square(y) - x, jnp.array([1.0, 1.0]), x, batched=False)  # noqa: E731
    np.testing.assert_allclose(jax.jit(jax.jacobian(inverse))(jnp.array([0.0, 2.0])), np.linalg.inv([[2.0, -2.0], [2.0, 2.0]]), atol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(inverse))(jnp.array([0.0, 2.0])), np.linalg.inv([[2.0, -2.0], [2.0, 2.0]]), atol=1e-10)
