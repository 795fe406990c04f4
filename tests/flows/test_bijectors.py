"""What every bijector of the table in `conftest.py` must do."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx


@functools.cache
def compiled(case, dtype):
    """Parameters, data, latents, and `both(params, x, z) -> (forward of x, inverse of z)`, compiled once for all tests."""
    bijector = case.bijector(dtype)
    x, condition = case.data(bijector, dtype=dtype)
    graphdef, params, rest = nnx.split(bijector, nnx.Param, ..., graph=False)  # fails for shared references

    @jax.jit
    def both(params, x, z):
        bijector = nnx.merge(graphdef, params, rest)
        return bijector.forward_and_log_det(x, condition=condition), bijector.inverse_and_log_det(z, condition=condition)

    z = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: bijector.forward_and_log_det(x, condition=condition).value))
    return params, x, both(params, x, z)[0].value, both


def flat(batch):
    """A batch, which may be several arrays, as the rows of one matrix."""
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(batch)], axis=1)


def assert_close(actual, expected, tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.float64, 1e-10)], ids=["float32", "float64"])
def test_round_trip(case, dtype, tolerance, x64):
    params, x, z, both = compiled(case, dtype)
    tolerance = case.slack * tolerance
    (_, log_det, _), (back, inverse_log_det, _) = both(params, x, z)
    again, _, _ = both(params, back, z)[0]
    assert {leaf.dtype for leaf in jax.tree.leaves((z, log_det, back, inverse_log_det))} == {jnp.dtype(dtype)}
    assert_close(back, x, tolerance)
    assert_close(again, z, tolerance)
    assert_close(inverse_log_det, -log_det, tolerance)


def test_log_det_is_that_of_the_jacobian(case, x64):
    params, x, z, both = compiled(case, jnp.float64)
    # All samples are moved at once: row i of the result depends on row i of the input alone.
    _, unflatten = jax.flatten_util.ravel_pytree(jax.tree.map(lambda leaf: leaf[0], x))
    directions = jax.vmap(unflatten)(jnp.eye(flat(x).shape[1]))
    directions = jax.tree.map(lambda d, leaf: d[:, None] * jnp.ones_like(leaf), directions, x)
    columns = jax.vmap(lambda v: flat(jax.jvp(lambda x: both(params, x, z)[0].value, (x,), (v,))[1]))(directions)
    jacobian = np.moveaxis(np.asarray(columns), 0, -1)
    log_det = both(params, x, z)[0].log_det
    assert log_det.shape == (len(flat(x)),)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-9 * case.slack)


def test_gradients_against_finite_differences(case, x64):
    params, x, z, both = compiled(case, jnp.float64)
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(2, *flat(x).shape))
    point = (params, x, z)

    def f(*point):
        sums = [
            (w * flat(result.value) ** 2).sum() + (w[:, 0] * result.log_det).sum() for w, result in zip(weights, both(*point), strict=True)
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
    params, x, z, both = compiled(case, jnp.float32)
    # The middle one stays where it is.
    others = jax.tree.map(lambda leaf: jnp.flip(leaf, axis=0).at[1].set(jnp.nan), x)
    alone, beside = both(params, x, z)[0], both(params, others, z)[0]
    np.testing.assert_array_equal(flat(alone.value)[2], flat(beside.value)[2])
    np.testing.assert_array_equal(alone.log_det[2], beside.log_det[2])
    finite = np.isfinite(flat(beside.value)).all(axis=1)
    np.testing.assert_array_equal(finite, [True, False, True, True, True])


def test_wrong_event_shape_is_refused(case):
    bijector = case.bijector()
    x, condition = case.data(bijector)
    z = compiled(case, jnp.float32)[2]
    for direction, value in ((bijector.forward_and_log_det, x), (bijector.inverse_and_log_det, z)):
        wrong = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis=-1), value)
        with pytest.raises(ValueError, match="expected an input of shape"):
            direction(wrong, condition=condition)
