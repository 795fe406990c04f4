import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from deqflow.nn.sine import cos, sin

PAIRS = pytest.mark.parametrize(("ours", "exact"), [(sin, np.sin), (cos, np.cos)], ids=["sin", "cos"])


def angles():
    """Spread over the range, and the floats next to the zeros and extrema of both, where a poor reduction shows."""
    random = np.random.default_rng(0).uniform(-1e4, 1e4, 200_000)
    quarters = np.arange(-6366, 6367) * np.pi / 2
    near = np.concatenate([np.nextafter(quarters.astype(np.float32), np.float32(s)) for s in (-np.inf, np.inf)])
    return np.concatenate([random, np.linspace(-4, 4, 100_001), quarters, near]).astype(np.float32)


@PAIRS
def test_float32_is_good_to_a_few_roundings(ours, exact):
    x = angles()
    y, expected = np.asarray(jax.jit(ours)(x)), exact(x.astype(np.float64))
    assert y.dtype == np.float32
    error = np.abs(y - expected)
    assert error.max() <= 1.3e-7  # a rounding of numbers around 1
    assert error[np.abs(expected) < 1e-5].max() <= 1e-10
    usual = np.abs(expected) > 1e-4
    assert (error / np.spacing(np.abs(expected).astype(np.float32)))[usual].max() <= 3


@PAIRS
def test_it_stays_within_one_and_keeps_nan(ours, exact):
    huge = np.float32([1e5, 1e8, -1e20, 3e38])
    assert np.abs(ours(jnp.asarray(huge))).max() <= 1
    assert np.abs(ours(jnp.linspace(-1e6, 1e6, 100_001))).max() <= 1 + 1e-6
    assert np.isnan(ours(jnp.float32([np.nan, np.inf, -np.inf]))).all()


@PAIRS
def test_derivatives_of_any_order(x64, ours, exact):
    check_grads(lambda x: ours(jnp.asarray(x)), (jnp.linspace(-9, 9, 50),), order=3)
    x = jnp.linspace(-9, 9, 50, dtype=jnp.float32)
    third = jax.vmap(jax.grad(jax.grad(jax.grad(ours))))(x)
    slope = {np.sin: -np.cos(np.asarray(x)), np.cos: np.sin(np.asarray(x))}[exact]
    assert third.dtype == jnp.float32
    np.testing.assert_allclose(third, slope, atol=2e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types(x64, dtype):
    x = jnp.linspace(-20, 20, 1001).astype(dtype)
    for ours, theirs in [(sin, jnp.sin), (cos, jnp.cos)]:
        y = ours(x)
        assert y.dtype == x.dtype
        np.testing.assert_allclose(y.astype(jnp.float64), theirs(x.astype(jnp.float64)), atol=float(jnp.finfo(dtype).eps))


def test_lowers_where_there_is_no_such_device():
    export = jax.export.export(jax.jit(jax.grad(lambda x: sin(x).sum())), platforms=["tpu", "cuda"])
    assert export(jax.ShapeDtypeStruct((8,), jnp.float32)).platforms == ("tpu", "cuda")
