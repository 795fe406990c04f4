import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from deqflow.nn import Conv, conv_same


def reference(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest")


@pytest.fixture
def images(x64):
    generator = np.random.default_rng(0)
    return jnp.asarray(generator.standard_normal((2, 5, 4, 3))), jnp.asarray(generator.standard_normal((3, 5, 3, 2)) / 5)


def loss(f):
    return lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel)))


TRANSFORMS = {
    "value": lambda f: f,
    "jit": jax.jit,
    "grad": lambda f: jax.grad(loss(f), (0, 1)),
    "jvp": lambda f: lambda x, k: jax.jvp(f, (x, k), (jnp.cos(x), jnp.sin(k))),
    "hessian": lambda f: jax.hessian(loss(f), (0, 1)),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(loss(f), (0, 1)), (0, 1)),
    "linear transpose": lambda f: lambda x, k: jax.linear_transpose(lambda x: f(x, k), x)(reference(x, k)),
    "remat": lambda f: jax.grad(jax.checkpoint(loss(f)), (0, 1)),
    "vmap over images": lambda f: lambda x, k: jax.vmap(f, (1, None), 2)(jnp.stack([x, 2 * x], 1), k),
    "vmap over kernels": lambda f: lambda x, k: jax.vmap(f, (None, 0))(x, jnp.stack([k, k**2])),
    "vmap over both": lambda f: lambda x, k: jax.vmap(jax.grad(loss(f), (0, 1)))(jnp.stack([x, 2 * x]), jnp.stack([k, k**2])),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_is_the_convolution_of_jax_in_value_and_every_derivative(images, transform):
    got, want = transform(conv_same)(*images), transform(reference)(*images)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-11), got, want)


def test_the_input_gradient_is_written_as_a_plain_convolution():
    """What makes it fast in a loop on the CPU: the flipped kernel is an operand, not a reversed window for XLA to fold in."""
    x, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 3))
    text = jax.jit(jax.linear_transpose(lambda x: conv_same(x, kernel), x)).lower(x).as_text()
    assert text.count("stablehlo.convolution") == 1
    assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in text


def test_so_is_the_kernel_gradient_on_the_cpu():
    x, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 3))
    text = jax.jit(jax.linear_transpose(lambda kernel: conv_same(x, kernel), kernel)).trace(x).lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.convolution") == 1
    assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in text


def test_keeps_the_precision_it_was_traced_with():
    x, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 3))

    def precise(z):
        with jax.default_matmul_precision("highest"):
            return conv_same(z, kernel)

    text = jax.jit(jax.grad(lambda x: precise(x).sum())).lower(x).as_text()
    assert all("HIGHEST" in line for line in text.splitlines() if "stablehlo.convolution" in line)


@pytest.mark.parametrize(("shape", "message"), [((2, 3, 3, 4), "odd"), ((3, 3, 2, 4), "takes 2 channels")])
def test_kernels_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        conv_same(jnp.ones((1, 5, 5, 3)), jnp.ones(shape))


def test_the_module_scales_by_its_gain_and_starts_with_unit_variance():
    x = jax.random.normal(jax.random.key(0), (8, 12, 12, 16))
    full, quarter = Conv(16, 32, rngs=nnx.Rngs(0)), Conv(16, 32, gain=0.25, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(quarter(x), full(x) / 4, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(full(x)[:, 1:-1, 1:-1].std(), 1.0, atol=0.1)
    assert Conv(1, 1, bias=False, rngs=nnx.Rngs(0)).bias is None
