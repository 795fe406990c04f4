"""A stack that is scanned does what the chain of its blocks does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import (
    ActNorm,
    ArnoldiQuadrature,
    Chain,
    ImplicitFlow,
    Inverse,
    InvertibleLinear,
    Permutation,
    Repeat,
    Residual,
    lipschitz_bounds,
)
from deqflow.nn import Linear, LipschitzMLP, SpectralNorm, refresh


def block(rngs):
    g = LipschitzMLP(3, width=4, depth=1, bound=0.5, rngs=rngs)
    return Chain([ActNorm((3,)), Residual(g, (3,), log_det=ArnoldiQuadrature(steps=2, probes=2))])


def data(n=64):
    return jnp.asarray(np.random.default_rng(0).normal(2, 3, (n, 3)), jnp.float32)


def test_it_is_the_chain_of_its_blocks():
    """Initialised by data, with the same keys: values, log-determinants and gradients; the same again if blocks are computed twice."""
    rngs = nnx.Rngs(0)
    chain = Chain([block(rngs) for _ in range(2)])
    stacks = [Repeat(block, 2, remat=remat, rngs=nnx.Rngs(0)) for remat in (False, True)]
    key = jax.random.key(1)

    @nnx.jit
    def initialized(bijector):
        bijector.initialize(data(), key=key)
        return bijector

    @nnx.jit
    def results(bijector):
        def loss(bijector):
            ahead = bijector.forward_and_log_det(data(5), key=key)
            return ahead.log_det.sum(), (ahead, bijector.inverse_and_log_det(data(5), key=key))

        return nnx.grad(loss, has_aux=True)(bijector)

    slopes, wanted = results(initialized(chain))
    for stack in stacks:
        stack = initialized(stack)
        assert not np.allclose(stack.block.layers[0].log_scale[0], 0)
        ours, found = results(stack)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one.value, other.value, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(one.log_det, other.log_det, rtol=1e-4, atol=1e-4)
            assert one.diagnostics["1"]["standard_error"].shape == (2, 5)
        want = slopes["layers"][1]["layers"][0]["log_scale"]
        np.testing.assert_allclose(ours["block"]["layers"][0]["log_scale"][1], want, rtol=1e-3, atol=1e-4)


def test_the_program_does_not_grow_with_the_number_of_blocks():
    def size(count):
        graph, state = nnx.split(Repeat(block, count, rngs=nnx.Rngs(0)))
        run = jax.grad(lambda state: nnx.merge(graph, state).forward_and_log_det(data(4), key=jax.random.key(0)).log_det.sum())
        return len(jax.jit(run).lower(state).as_text().splitlines())

    assert size(32) <= 1.05 * size(4)


def test_the_reverse_pass_solves_nothing_again():
    """What is computed twice for want of memory is the rest: loops are as many as where nothing is."""

    def make(rngs):
        g_x, g_z = (LipschitzMLP(3, width=4, depth=1, bound=0.5, parametrise="almost_orthogonal", rngs=rngs) for _ in range(2))
        return ImplicitFlow(g_x, g_z, (3,))

    def loops(remat):
        graph, state = nnx.split(Repeat(make, 2, remat=remat, rngs=nnx.Rngs(0)))
        slope = jax.grad(lambda state: nnx.merge(graph, state).forward_and_log_det(data(4)).value.sum())
        return jax.jit(slope).lower(state).compile().as_text().count(" while(")

    assert loops(remat=True) == loops(remat=False)


def test_weights_inside_are_refreshed():
    def make(rngs):
        layer = Linear(3, 3, parametrise=lambda kernel: SpectralNorm(kernel, bound=0.5, rngs=rngs), rngs=rngs)
        return Residual(layer, (3,), expansion="ignore")

    stack = Repeat(make, 2, rngs=nnx.Rngs(0))
    stack.block.g.kernel.kernel[...] = jax.random.normal(jax.random.key(3), (2, 3, 3))
    norms = np.linalg.norm(stack.block.g.kernel.kernel[...], 2, axis=(1, 2))
    for _ in range(50):
        refresh(nnx.List([stack]))
    images = jnp.einsum("nij,nbi->nbj", stack.block.g.kernel.kernel[...], stack.block.g.kernel.vector[...])
    np.testing.assert_allclose(np.linalg.norm(images, axis=(1, 2)), norms, rtol=1e-3)


def test_blocks_come_apart():
    stack = Repeat(block, 3, rngs=nnx.Rngs(0))
    value = data(4)
    for part in stack.blocks():
        value = part.forward_and_log_det(value, key=jax.random.key(0)).value
    np.testing.assert_allclose(value, stack.forward_and_log_det(data(4), key=jax.random.key(0)).value, rtol=1e-5)
    bounds = lipschitz_bounds(Chain([stack, Inverse(stack)]))
    assert len(bounds) == 6
    assert bounds[:3] == bounds[3:]
    assert max(bounds) <= 0.5


def test_blocks_that_differ_in_what_is_fixed_are_refused():
    orders = iter(([0, 1, 2], [2, 1, 0]))
    with pytest.raises(ValueError, match="such as the order of a Permutation; use InvertibleLinear instead"):
        Repeat(lambda rngs: Permutation(next(orders)), 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="count must be >= 1"):
        Repeat(lambda rngs: InvertibleLinear((3,), rngs=rngs), 0, rngs=nnx.Rngs(0))
