import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from deqflow.data.spec import DataSpec
from deqflow.nn import SpectralNorm, conv_same, refresh
from deqflow.nn.linear import Linear
from deqflow.optim import AdamW
from deqflow.tasks import Classification
from deqflow.train.settings import TrainSettings
from deqflow.train.step import Program, abstract_batch


def largest_singular_value(kernel, size=None):
    if size is None:
        return np.linalg.norm(np.asarray(kernel), 2)
    basis = jnp.eye(size[0] * size[1] * kernel.shape[2]).reshape(-1, *size, kernel.shape[2])
    return np.linalg.norm(np.asarray(conv_same(basis, kernel)).reshape(len(basis), -1), 2)


@pytest.mark.parametrize(("shape", "size"), [((7, 5), None), ((3, 3, 2, 3), (4, 5))], ids=["matrix", "convolution"])
def test_after_enough_refreshes_the_norm_is_the_bound(shape, size):
    kernel = 3 * jax.random.normal(jax.random.key(0), shape)
    weight = SpectralNorm(kernel, bound=0.9, size=size, steps=25, rngs=nnx.Rngs(0))
    for _ in range(4):
        weight.refresh()
    np.testing.assert_allclose(largest_singular_value(weight(), size), 0.9, rtol=1e-3)
    weight.kernel[...] *= 1e-2
    np.testing.assert_array_equal(weight(), weight.kernel[...])  # what is within the bound stays as it is


@pytest.mark.parametrize(("shape", "size"), [((7, 5), None), ((3, 3, 2, 3), (4, 5))], ids=["matrix", "convolution"])
def test_weights_in_bfloat16_stay_so(shape, size):
    weight = SpectralNorm(3 * jax.random.normal(jax.random.key(0), shape), size=size, steps=25, rngs=nnx.Rngs(0))
    wide, weight.kernel = weight(), nnx.Param(weight.kernel[...].astype(jnp.bfloat16))
    assert weight().dtype == jnp.bfloat16
    assert weight.vector.dtype == jnp.float32
    np.testing.assert_allclose(weight().astype(jnp.float32), wide, atol=0.01)


def test_the_vector_changes_in_refresh_alone():
    layer = Linear(4, 4, parametrise=lambda k: SpectralNorm(k, rngs=nnx.Rngs(1)), rngs=nnx.Rngs(0))
    layer.kernel.kernel[...] = 5 * jax.random.normal(jax.random.key(0), (4, 4))
    before = np.array(layer.kernel.vector[...])
    nnx.jit(nnx.grad(lambda layer: layer(jnp.ones((2, 4))).sum()))(layer)
    np.testing.assert_array_equal(layer.kernel.vector[...], before)
    nnx.jit(refresh)(nnx.Dict(a=layer))
    after = layer.kernel.vector[...]
    image = before @ layer.kernel.kernel[...] @ layer.kernel.kernel[...].T
    np.testing.assert_allclose(after, image / np.linalg.norm(image), atol=1e-5)


def test_the_gradient_goes_through_the_estimate(x64):
    weight = SpectralNorm(jax.random.normal(jax.random.key(0), (4, 3), jnp.float64), bound=0.5, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(weight, nnx.Param, ...)
    loss = lambda params: jnp.sum(jnp.sin(nnx.merge(graphdef, params, rest)()))  # noqa: E731
    check_grads(loss, (params,), order=1, modes=("rev",), eps=1e-5)


def test_zero_weights_have_finite_gradients():
    weight = SpectralNorm(jnp.zeros((3, 3)), rngs=nnx.Rngs(0))
    refresh(weight)
    assert np.isfinite(weight.vector[...]).all()
    assert np.isfinite(nnx.grad(lambda w: jnp.sum(w()))(weight).kernel[...]).all()


def test_the_trainer_refreshes_once_per_step():
    class Net(nnx.Module):
        def __init__(self):
            self.weight = SpectralNorm(2 * jnp.eye(3) + 0.1, rngs=nnx.Rngs(0))

        def __call__(self, x, *, key=None):
            return x @ self.weight()

    model = Net()
    batch = {"x": jnp.ones((2, 3)), "y": jnp.array([0, 1])}
    spec = DataSpec(input_shape=(3,), dtype="float32", classes=3)
    program = Program(model, Classification(classes=3), AdamW(lr=0.01), TrainSettings(steps=3), 0, abstract_batch(spec, 2))
    state = program.initial(program.layout.leaves(model))
    model.weight.refresh()
    state, _ = program.step(state, batch)
    np.testing.assert_allclose(state["model/weight.vector"], model.weight.vector[...], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [((3, 3), {"size": (4, 4)}, "of a matrix has none"), ((3, 3, 2, 2), {}, "needs `size`"), ((3, 3), {"bound": 0.0}, "bound must be > 0")],
)
def test_what_it_refuses(shape, options, message):
    with pytest.raises(ValueError, match=message):
        SpectralNorm(jnp.ones(shape), rngs=nnx.Rngs(0), **options)
