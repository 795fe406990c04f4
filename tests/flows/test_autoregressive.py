"""Masked autoregressive flows: what depends on what, and that the inverse is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import MADE, MaskedAutoregressive


def filled(module):
    """With a last layer that is not zero."""
    module.last.kernel[...] = jax.random.normal(jax.random.key(5), module.last.kernel.shape)
    return module


@pytest.mark.parametrize(("size", "width"), [(1, 4), (2, 3), (5, 7), (6, 2)])
def test_outputs_depend_on_the_inputs_before_them_alone(size, width):
    made = filled(MADE(size, 2, width=width, depth=2, rngs=nnx.Rngs(0)))
    x = jnp.ones(size)
    jacobian = np.asarray(jax.jacobian(lambda x: made(x[None])[0])(x))  # numbers, outputs, inputs
    assert (np.triu(jacobian) == 0).all()
    if width >= size:
        assert (jacobian[:, np.tril_indices(size, -1)[0], np.tril_indices(size, -1)[1]] != 0).all()


def test_the_inverse_is_exact_in_many_dimensions():
    """Where an iteration that stops once nothing seems to change would stop too soon."""
    flow = MaskedAutoregressive(48, width=96, depth=1, rngs=nnx.Rngs(0))
    filled(flow.made)
    flow.made.last.kernel[...] = 0.1 * flow.made.last.kernel[...]
    x = jax.random.normal(jax.random.key(0), (8, 48))
    back = jax.jit(lambda z: flow.inverse_and_log_det(z))(flow.forward_and_log_det(x).value)
    np.testing.assert_allclose(back.value, x, atol=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match="depth must be >= 1"):
        MaskedAutoregressive(2, width=4, depth=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="a condition with 0 features, got 3"):
        MaskedAutoregressive(2, width=4, depth=1, rngs=nnx.Rngs(0)).forward_and_log_det(jnp.ones((1, 2)), condition=jnp.ones((1, 3)))
