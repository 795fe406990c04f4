import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.deq import ConvCell
from deqflow.implicit import Anderson
from deqflow.models.deq_segmenter import DEQSegmenter


def build(**changes):
    cell = functools.partial(ConvCell, groups=2)
    arguments = {"width": 4, "groups": 2, "cell": cell, "input_shape": (7, 7, 3), "classes": 2, "levels": 2, "rngs": nnx.Rngs(0)}
    return DEQSegmenter(**{**arguments, **changes})


solve = nnx.jit(lambda model, x, budget: model.solve(x, budget=budget))


def images(n, side=7):
    return jax.random.randint(jax.random.key(0), (n, side, side, 3), 0, 2).astype(jnp.uint8)


def test_every_pixel_gets_logits_from_its_own_state_alone():
    model, x = build(), images(2)
    solution = solve(model, x, 50)
    assert solution.stats.converged.all()
    logits = model.readout(solution.value)
    np.testing.assert_allclose(nnx.jit(lambda model, x: model(x))(model, x), logits, atol=1e-4)
    assert logits.shape == (2, 7, 7, 2)
    changed = model.readout(solution.value.at[:, 3, 4].add(1.0))
    assert np.argwhere(np.asarray(changed != logits).any(axis=-1)).tolist() == [[0, 3, 4], [1, 3, 4]]


def test_takes_larger_images_than_it_was_made_for():
    model = build()
    assert model(images(1, side=11)).shape == (1, 11, 11, 2)


def test_the_step_budget_is_traced():
    model, x = build(solver=Anderson(rtol=1e-6)), images(2)
    few, many = solve(model, x, jnp.int32(2)), solve(model, x, jnp.int32(8))
    assert (few.stats.steps.max(), many.stats.steps.max()) == (2, 8)
    assert (many.stats.residual < few.stats.residual).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": (2,)}, r"deq_segmenter takes images of shape \(height, width, channels\), got examples of shape \(2,\)"),
        ({"classes": None}, "deq_segmenter needs labelled data"),
        ({"groups": 3}, "3 groups for 4 channels"),
    ],
)
def test_what_it_cannot_take(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
