import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.nn import Activation, Linear, LipschitzMLP, NormLimit, SpectralNorm, lipschitz_bound


def scrambled(module, seed, scale):
    """The module with other parameters, as after some training."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    keys = iter(jax.random.split(jax.random.key(seed), 100))
    params = jax.tree.map(lambda p: p + scale * jax.random.normal(next(keys), p.shape, p.dtype), params)
    return nnx.merge(graphdef, params, rest)


@pytest.mark.parametrize("activation", ["sincos", "lipswish", "clipswish", "maxmin"])
def test_no_jacobian_exceeds_the_certified_bound(activation):
    """For the first parameters and for others, at random points; and the certificate does not exceed what was asked for."""
    mlp = LipschitzMLP(4, width=16, depth=2, bound=0.97, activation=activation, condition_size=3, rngs=nnx.Rngs(0))
    x, c = jax.random.normal(jax.random.key(0), (50, 4)), jax.random.normal(jax.random.key(1), (1, 3))
    graphdef = nnx.graphdef(mlp)

    @jax.jit
    def jacobians(state, x):
        g = nnx.merge(graphdef, state).prepare(c)
        return jax.vmap(jax.jacobian(lambda x: g(x[None])[0]))(x)

    for seed, scale in enumerate([0.0, 0.1, 1.0, 30.0]):
        model = scrambled(mlp, seed, scale)
        bound = model.lipschitz_bound()
        assert bound <= 0.97
        norms = np.linalg.norm(jacobians(nnx.state(model), x), 2, axis=(1, 2))
        assert norms.max() <= bound
    assert bound >= 0.85  # large weights use what they may


@pytest.mark.parametrize("parametrise, least", [("almost_orthogonal", 0.3), ("orthogonal", 0.969), ("mixed_norm", 0.05)])
def test_other_parametrisations_are_certified_too(parametrise, least):
    mlp = LipschitzMLP(4, width=8, depth=2, bound=0.97, parametrise=parametrise, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (50, 4))
    jacobians = nnx.jit(lambda g, x: jax.vmap(jax.jacobian(lambda x: g(x[None])[0]))(x))
    for seed, scale in enumerate([0.0, 1.0, 30.0]):
        model = scrambled(mlp, seed, scale)
        bound = model.lipschitz_bound()
        assert least <= bound <= 0.97
        assert np.linalg.norm(jacobians(model, x), 2, axis=(1, 2)).max() <= bound


def test_the_bound_is_of_x_alone():
    mlp = LipschitzMLP(2, width=8, depth=1, bound=0.9, condition_size=1, rngs=nnx.Rngs(0))
    mlp.condition.kernel[...] = 1e3 * jnp.ones((1, 8))
    assert mlp.lipschitz_bound() <= 0.9
    x = jnp.ones((1, 2))
    assert not np.allclose(mlp(x, condition=jnp.ones((1, 1))), mlp(x, condition=jnp.zeros((1, 1))))
    with pytest.raises(ValueError, match="a condition with 1 features, got none"):
        mlp(x)


def test_norm_limit_derivative_is_that_of_the_whole_map(x64):
    kernel = jax.random.normal(jax.random.key(0), (5, 3), jnp.float64)

    def f(kernel):
        return jnp.sum(jnp.sin(NormLimit(kernel, limit=0.5)()))

    direction = jax.random.normal(jax.random.key(1), kernel.shape, jnp.float64)
    numeric = (f(kernel + 1e-6 * direction) - f(kernel - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(jax.grad(f)(kernel), direction), numeric, rtol=1e-7)
    small = 1e-3 * kernel
    np.testing.assert_array_equal(NormLimit(small)(), small)
    assert np.isfinite(jax.grad(lambda k: NormLimit(k)().sum())(jnp.zeros((3, 3)))).all()


def test_bounds_are_certain():
    """Power iteration from a bad vector says a kernel is small; the certificate does not believe it."""
    weight = SpectralNorm(jnp.diag(jnp.array([4.0, 1.0])), rngs=nnx.Rngs(0))
    weight.vector[...] = jnp.array([[0.0, 1.0]])  # an eigenvector of the smaller one
    layer = Linear(2, 2, bias=False, rngs=nnx.Rngs(0))
    layer.kernel = weight
    assert lipschitz_bound(layer) >= 4
    assert lipschitz_bound([layer, Activation("sine"), layer]) >= 16
    assert lipschitz_bound(lambda x: x) == np.inf
    assert lipschitz_bound([Activation("elu"), jnp.sin]) == np.inf
    zero = Linear(2, 2, bias=False, rngs=nnx.Rngs(0))
    zero.kernel = nnx.Param(jnp.zeros((2, 2)))
    assert lipschitz_bound([zero, jnp.sin]) == np.inf
    layer.kernel = nnx.Param(jnp.full((2, 2), jnp.nan))
    assert lipschitz_bound(layer) == np.inf
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda k: lipschitz_bound_of(k))(jnp.eye(2))


def lipschitz_bound_of(kernel):
    layer = Linear(2, 2, bias=False, rngs=nnx.Rngs(0))
    layer.kernel = nnx.Param(kernel)
    return lipschitz_bound(layer)


def test_bad_arguments():
    with pytest.raises(ValueError, match="depth must be >= 1"):
        LipschitzMLP(2, width=8, depth=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="NormLimit takes matrices and kernels of convolutions with odd sides"):
        NormLimit(jnp.ones((2, 3, 1, 1)))
