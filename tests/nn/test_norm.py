import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.nn import GroupNorm


def test_agrees_with_flax(x64):
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 12)) * 3 + 1
    ours, theirs = GroupNorm(12, 3), nnx.GroupNorm(12, num_groups=3, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))
    scale, bias = jax.random.normal(jax.random.key(1), (2, 12), jnp.float32)
    ours.scale[...], ours.bias[...] = scale, bias
    nnx.update(theirs, {"scale": scale, "bias": bias})
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)
    pull = lambda norm: jax.vjp(norm, x)[1](jnp.cos(x))[0]  # noqa: E731
    np.testing.assert_allclose(pull(ours), pull(theirs), atol=1e-5)


def test_does_not_cancel_on_a_large_offset():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    np.testing.assert_allclose(GroupNorm(4, 2)(x + 1000.0), GroupNorm(4, 2)(x), atol=2e-3)


def test_a_constant_input_has_a_finite_gradient():
    gradient = jax.grad(lambda x: (GroupNorm(4, 2)(x) ** 2).sum())(jnp.ones((2, 3, 3, 4)))
    assert np.isfinite(gradient).all()


def test_samples_are_independent_bitwise():
    x = jax.random.normal(jax.random.key(0), (4, 6, 6, 8))
    norm = jax.jit(GroupNorm(8, 4))
    np.testing.assert_array_equal(norm(x)[0], norm(x.at[1:].multiply(100.0))[0])


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="3 groups for 8 channels"):
        GroupNorm(8, 3)
