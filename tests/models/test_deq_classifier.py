import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqflow.deq import ConvCell, Diagnostics
from deqflow.implicit import Anderson, Picard
from deqflow.models.deq_classifier import DEQClassifier


def build(**changes):
    cell = functools.partial(ConvCell, groups=4)
    arguments = {"width": 8, "groups": 4, "cell": cell, "input_shape": (8, 8, 1), "classes": 10, "levels": 17, "rngs": nnx.Rngs(0)}
    return DEQClassifier(**{**arguments, **changes})


call = nnx.jit(lambda model, x: model(x))
solve = nnx.jit(lambda model, x: model.solve(x, trace=True))


def images(n, shape=(8, 8, 1), levels=17):
    return jax.random.randint(jax.random.key(0), (n, *shape), 0, levels).astype(jnp.uint8)


def test_calling_is_solving_and_reading_out():
    model, x = build(), images(3)
    logits = call(model, x)
    assert logits.shape == (3, 10)
    assert logits.dtype == jnp.float32
    solution = solve(model, x)
    np.testing.assert_allclose(model.readout(solution.value), logits, atol=1e-5)
    assert solution.stats.converged.all()
    assert solution.stats.trace.shape == (50, 3)


def test_integer_images_are_divided_by_their_largest_level():
    x = images(3)
    np.testing.assert_allclose(call(build(), x), call(build(levels=None), x / jnp.float32(16)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "grid"),
    [((28, 28, 1), {"stride": 4}, (7, 7)), ((9, 7, 3), {"grid": 2}, (9, 7)), ((3, 3, 1), {"grid": 3}, (3, 3))],
)
def test_other_sizes(shape, options, grid):
    model = build(input_shape=shape, **options)
    value = jax.eval_shape(lambda model, x: model.solve(x).value, model, images(2, shape))
    assert value.shape == (2, *grid, 8)
    assert call(model, images(2, shape)).shape == (2, 10)


def test_the_readout_averages_tiles():
    model = build(input_shape=(6, 6, 1), grid=2)
    z = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
    tiles = z.reshape(2, 2, 3, 2, 3, 8).mean((2, 4)).reshape(2, -1)
    np.testing.assert_allclose(model.readout(z), model.linear(tiles), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": (2,)}, r"images of shape \(height, width, channels\), got examples of shape \(2,\)"),
        ({"input_shape": (2, 8, 1)}, "at least 4 x 4 pixels, got 2 x 8"),
        ({"input_shape": (8, 8, 1), "stride": 4}, "at least 16 x 16"),
        ({"classes": None}, "labelled"),
        ({"width": 10}, "4 groups for 10 channels"),
        ({"width": 0}, "width"),
        ({"cell": functools.partial(ConvCell, groups=3)}, "3 groups for 8 channels"),
        ({"cell": functools.partial(ConvCell, gain=0.0)}, "gain"),
    ],
)
def test_what_it_cannot_take(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_learns_and_stays_at_equilibrium():
    """Ten random images are learnt by heart through split, merge and plain jit, as the trainer does it."""
    model, x, y = build(solver=Anderson(history=3, rtol=1e-3, max_steps=30)), images(10), jnp.arange(10)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, rest, state):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean(), nnx.state(model, nnx.Not(nnx.Param))

        (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), rest, state, value

    state, losses = optimizer.init(params), []
    for _ in range(40):
        params, rest, state, value = step(params, rest, state)
        losses.append(float(value))
    assert losses[-1] < 0.1 * losses[0]
    diagnostics = nnx.to_pure_dict(nnx.state(nnx.merge(graphdef, params, rest), Diagnostics))["deq"]["diagnostics"]
    assert diagnostics["residual"] <= 1e-3
    assert diagnostics["failures"] == 0


def test_a_non_finite_image_is_flagged():
    model = build(levels=None, solver=Picard())
    stats = solve(model, jnp.ones((2, 8, 8, 1)).at[0, 0, 0, 0].set(jnp.nan)).stats
    assert list(stats.failed) == [True, False]


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero():
    model = build()
    gradient = nnx.jit(nnx.grad(lambda model, x: jnp.sum(jnp.sin(jnp.arange(10.0) * model(x)))))(model, images(4))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 1e-7, path
