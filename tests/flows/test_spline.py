"""Monotone rational-quadratic splines: where they are the identity, on their knots, and far from where they are meant to be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.flows import Spline

BINS, BOUND = 6, 4.0


@functools.partial(jax.jit, static_argnames="inverse")
def values_and_slopes(parameters, x, inverse=False):
    """The value and the logarithm of the slope, and for both their derivatives to the parameters and to the point."""

    def f(parameters, x):
        spline = Spline.of(parameters, BOUND)
        return jnp.stack(spline.inverse(x, BOUND) if inverse else spline(x, BOUND))

    return f(parameters, x), jax.vmap(jax.jacobian(f, argnums=(0, 1)))(parameters, x)


def points(parameters):
    """For each spline its knots, the ends of its interval, their neighbours on either side, some far outside and some within."""
    knots = jnp.cumsum(Spline.of(parameters, BOUND).widths, axis=-1)[:, :-1] - BOUND
    ends = np.float32([-BOUND, BOUND])
    fixed = np.concatenate([ends, np.nextafter(ends, 0), np.nextafter(ends, 9 * ends), [-1e30, 1e30], np.linspace(-3.9, 3.9, 11)])
    return jnp.concatenate([knots, jnp.tile(jnp.asarray(fixed, knots.dtype), (len(knots), 1))], axis=1)


@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0])
def test_everything_is_finite_and_the_inverse_solves_for_the_point(scale):
    parameters = scale * jax.random.normal(jax.random.key(0), (10, 3 * BINS - 1))
    x = points(parameters)
    parameters, x = jnp.repeat(parameters, x.shape[1], axis=0), x.ravel()
    (y, log_slope), derivatives = values_and_slopes(parameters, x)
    (back, inverse_log_slope), inverse_derivatives = values_and_slopes(parameters, y, inverse=True)
    for leaf in jax.tree.leaves((y, log_slope, derivatives, back, inverse_log_slope, inverse_derivatives)):
        assert np.isfinite(leaf).all()
    inside = np.abs(x) <= BOUND
    np.testing.assert_array_equal(np.abs(y) <= BOUND, inside)
    np.testing.assert_array_equal(y[~inside], x[~inside])
    np.testing.assert_array_equal(log_slope[~inside], 0)
    # The error is that of y: where the slope is small, that of x is as much larger.
    np.testing.assert_allclose((back - x) * np.exp(np.minimum(log_slope, 0)), np.zeros(len(x)), atol=1e-5)


def test_the_slope_is_the_derivative_on_either_side_of_a_knot(x64):
    parameters = jax.random.normal(jax.random.key(0), (4, 3 * BINS - 1))
    x = points(parameters)[:, : BINS - 1]
    parameters, x = jnp.repeat(parameters, BINS - 1, axis=0), x.ravel()
    for inverse in (False, True):
        if inverse:
            x = values_and_slopes(parameters, x)[0][0]
        (y, log_slope), (_, by_point) = values_and_slopes(parameters, x, inverse=inverse)
        np.testing.assert_allclose(by_point[:, 0], np.exp(log_slope), rtol=1e-9)
        for step in (-1e-7, 1e-7):
            difference = values_and_slopes(parameters, x + step, inverse=inverse)[0][0] - y
            np.testing.assert_allclose(difference / step, np.exp(log_slope), rtol=1e-4)


def test_zeros_are_the_identity():
    x = points(jnp.zeros((1, 3 * BINS - 1)))[0]
    (y, log_slope), _ = values_and_slopes(jnp.zeros((len(x), 3 * BINS - 1)), x)
    np.testing.assert_allclose(y, x, rtol=1e-6)
    np.testing.assert_allclose(log_slope, np.zeros(len(x)), atol=1e-6)


def test_slopes_and_bins_have_a_least_size():
    spline = Spline.of(jnp.full((1, 3 * BINS - 1), -1e4).at[0, 0].set(0).at[0, BINS].set(0), BOUND)
    np.testing.assert_allclose(spline.widths[0, 1:], np.full(BINS - 1, 2 * BOUND * 1e-2 / BINS), rtol=1e-5)
    np.testing.assert_allclose(spline.slopes[0], np.full(BINS - 1, 1e-3), rtol=1e-5)
    np.testing.assert_allclose([spline.widths.sum(), spline.heights.sum()], [2 * BOUND, 2 * BOUND], rtol=1e-6)
