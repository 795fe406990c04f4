import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.implicit import JacobianFree, Picard
from deqflow.models.mdeq_classifier import MDEQClassifier


def build(**changes):
    arguments = {"widths": (8, 4), "groups": 2, "input_shape": (9, 12, 3), "stride": 3, "classes": 5, "levels": 256, "rngs": nnx.Rngs(0)}
    return MDEQClassifier(solver=Picard(rtol=1e-4), gradient=JacobianFree(), **{**arguments, **changes})


def test_solves_reads_out_and_gives_every_parameter_a_gradient():
    x = jax.random.randint(jax.random.key(0), (3, 12, 12, 3), 0, 256).astype(jnp.uint8)

    @nnx.jit
    def run(model, x):
        def loss(model):
            solution = model.solve(x)
            logits = model.readout(solution.value)
            return jnp.sum(jnp.sin(jnp.arange(5.0) * logits)), (solution, logits)

        return nnx.grad(loss, has_aux=True)(model)

    gradient, (solution, logits) = run(build(input_shape=(12, 12, 3)), x)
    assert [part.shape for part in solution.value] == [(3, 4, 4, 8), (3, 2, 2, 4)]
    assert logits.shape == (3, 5)
    assert solution.stats.converged.all()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 1e-7, path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "2 scales need images whose sides are multiples of 2, got 3 x 4"),
        ({"input_shape": (2,)}, "mdeq_classifier takes images"),
        ({"classes": None}, "mdeq_classifier needs labelled data"),
        ({"widths": (8, 6), "groups": 4}, "4 groups for 6 channels"),
        ({"widths": (8, 0)}, "widths must be the channels"),
    ],
)
def test_what_it_cannot_take(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
