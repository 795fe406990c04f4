"""What every bijector of the table in `conftest.py` must do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx


@functools.cache
def compiled(case, dtype):
    """Parameters, a batch of data, and `both(params, x, z) -> (forward of x, inverse of z)`, compiled once for all tests."""
    bijector = case.bijector(dtype)
    x, condition = case.data(bijector, dtype=dtype)
    graphdef, params, rest = nnx.split(bijector, nnx.Param, ..., graph=False)  # fails for shared references

    @jax.jit
    def both(params, x, z):
        bijector = nnx.merge(graphdef, params, rest)
        return bijector.forward_and_log_det(x, condition=condition), bijector.inverse_and_log_det(z, condition=condition)

    return params, x, both


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.float64, 1e-10)], ids=["float32", "float64"])
def test_round_trip(case, dtype, tolerance, x64):
    params, x, both = compiled(case, dtype)
    z, log_det, _ = both(params, x, x)[0]
    back, inverse_log_det, _ = both(params, x, z)[1]
    again, _, _ = both(params, back, z)[0]
    assert z.dtype == log_det.dtype == back.dtype == inverse_log_det.dtype == dtype
    np.testing.assert_allclose(back, x, rtol=tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(again, z, rtol=tolerance, atol=10 * tolerance)
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=tolerance, atol=10 * tolerance)


def test_log_det_is_that_of_the_jacobian(case, x64):
    params, x, both = compiled(case, jnp.float64)
    # All samples are moved at once: row i of the result depends on row i of the input alone.
    directions = jnp.eye(x[0].size).reshape(-1, 1, *x.shape[1:]) * jnp.ones_like(x)
    columns = jax.vmap(lambda v: jax.jvp(lambda x: both(params, x, x)[0].value, (x,), (v,))[1])(directions)
    jacobian = np.moveaxis(np.asarray(columns).reshape(x[0].size, len(x), -1), 0, -1)
    log_det = both(params, x, x)[0].log_det
    assert log_det.shape == (len(x),)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-9)


def test_gradients_against_finite_differences(case, x64):
    params, x, both = compiled(case, jnp.float64)
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(2, *x.shape))
    point = (params, x, both(params, x, x)[0].value)

    def f(*point):
        sums = [
            (w * result.value**2).sum() + (w.reshape(len(x), -1)[:, 0] * result.log_det).sum()
            for w, result in zip(weights, both(*point), strict=True)
        ]
        return sums[0] + sums[1]

    slopes = jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*point)
    for path, slope in jax.tree.leaves_with_path(slopes):
        assert np.isfinite(slope).all(), path
        assert (np.asarray(slope) != 0).any(), path

    tangent = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), point)
    slope = sum(np.vdot(g, t) for g, t in zip(jax.tree.leaves(slopes), jax.tree.leaves(tangent), strict=True))
    step = 1e-6
    ahead, behind = (f(*jax.tree.map(lambda p, t, s=s: np.asarray(p) + s * t, point, tangent)) for s in (step, -step))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-5)


def test_samples_do_not_depend_on_their_neighbours(case):
    params, x, both = compiled(case, jnp.float32)
    others = jnp.flip(x, axis=0).at[1].set(jnp.nan)  # the middle one stays where it is
    alone, beside = both(params, x, x)[0], both(params, others, others)[0]
    np.testing.assert_array_equal(alone.value[2], beside.value[2])
    np.testing.assert_array_equal(alone.log_det[2], beside.log_det[2])
    finite = np.isfinite(np.asarray(beside.value).reshape(5, -1)).all(axis=1)
    np.testing.assert_array_equal(finite, [True, False, True, True, True])


def test_wrong_event_shape_is_refused(case):
    bijector = case.bijector()
    x, condition = case.data(bijector)
    wrong = jnp.concatenate([x, x], axis=-1)
    with pytest.raises(ValueError, match="expected an input of shape"):
        bijector.forward_and_log_det(wrong, condition=condition)
    with pytest.raises(ValueError, match="expected an input of shape"):
        bijector.inverse_and_log_det(wrong, condition=condition)
