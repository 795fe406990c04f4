"""The statistics reach `nnx.state(model, Diagnostics)` through every way of calling a module that Flax offers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.deq import DEQ, Diagnostics, Examined, examine
from deqflow.implicit import JacobianFree, Picard

NAMES = {"steps", "max_steps", "residual", "failures"}


class Scale(nnx.Module):
    """`z -> rate z + x`: how many steps it takes is known."""

    def __init__(self, rate=0.5):
        self.rate = nnx.Param(jnp.asarray(rate, jnp.float32))

    def __call__(self, z, x):
        return self.rate[...] * z + x


@pytest.fixture
def layer():
    return DEQ(Scale(), Picard(rtol=1e-3, max_steps=20))


X = jnp.ones((4, 2))
STEPS = 11  # the residual halves with every step: 2^-10 < 1e-3 relative to a value near 2


def read(model):
    state = nnx.to_pure_dict(nnx.state(model, Diagnostics))
    while "diagnostics" not in state:
        (state,) = state.values()
    return {name: np.asarray(value) for name, value in state["diagnostics"].items()}


def test_fixed_shapes_from_construction(layer):
    assert read(layer).keys() == NAMES
    assert all(value.shape == () and value.dtype == np.float32 for value in read(layer).values())
    before = jax.tree.map(jnp.shape, nnx.state(layer))
    layer(X)
    assert jax.tree.map(jnp.shape, nnx.state(layer)) == before


def test_values(layer):
    layer(X.at[0].set(0.0).at[1, 0].set(jnp.nan))
    values = read(layer)
    assert values["failures"] == 0.25
    assert values["max_steps"] == STEPS - 1
    np.testing.assert_allclose(values["steps"], (1 + 1 + 2 * (STEPS - 1)) / 4)
    assert 0.25 < values["residual"] < 0.252  # the failed sample counts as 1


def test_solve_writes_as_well(layer):
    layer.solve(X, budget=3)
    assert read(layer)["steps"] == 3


def split_and_merge(layer, x):
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def step(params, rest, x):
        def loss(params):
            model = nnx.merge(graphdef, params, rest, copy=True)
            return model(x).sum(), nnx.state(model, nnx.Not(nnx.Param))

        (_, rest), _ = jax.value_and_grad(loss, has_aux=True)(params)
        return rest

    return nnx.merge(graphdef, params, step(params, rest, x))


def in_place(transform):
    def call(layer, x):
        transform(lambda layer, x: layer(x).sum())(layer, x)
        return layer

    return call


CALLS = {
    "eager": in_place(lambda f: f),
    "nnx.jit": in_place(nnx.jit),
    "nnx.grad": in_place(nnx.grad),
    "nnx.remat": in_place(nnx.remat),
    "nnx.grad of nnx.remat": in_place(lambda f: nnx.grad(nnx.remat(f))),
    "jax.jit with split and merge": split_and_merge,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_reach_the_state(layer, call):
    values = read(call(layer, X))
    assert values["steps"] == values["max_steps"] == STEPS - 1
    assert values["failures"] == 0


def test_under_nnx_scan_every_layer_keeps_its_own():
    @nnx.vmap(in_axes=0)
    def create(rate):
        return DEQ(Scale(rate), Picard(rtol=1e-3, max_steps=40))

    stack = create(jnp.array([0.5, 0.25]))

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def forward(layer, x):
        return layer(x)

    nnx.jit(forward)(stack, X)
    values = read(stack)
    assert values["steps"].shape == (2,)
    assert values["steps"][0] > values["steps"][1] > 1
    gradient = nnx.jit(nnx.grad(lambda stack, x: forward(stack, x).sum()))(stack, X)
    assert np.isfinite(np.asarray(jax.tree.leaves(gradient)[0])).all()


def test_an_examined_layer_tells_its_health(layer):
    assert not jax.tree.leaves(nnx.state(layer, Examined))
    examine(layer)
    layer(X.at[0, 0].set(jnp.nan))
    found = {name: float(value) for name, value in nnx.to_pure_dict(nnx.state(layer, Examined))["health"].items()}
    assert found == pytest.approx({"spectral_radius": 0.5, "jacobian_norm": 0.5, "backward_residual": 0, "backward_steps": 1}, abs=1e-5)
    layer(jnp.full_like(X, jnp.nan))
    assert all(np.isnan(value) for value in jax.tree.leaves(nnx.state(layer, Examined)))


def test_every_layer_of_a_stack_is_examined():
    stack = nnx.vmap(lambda rate: DEQ(Scale(rate), Picard(rtol=1e-3, max_steps=40), JacobianFree()), in_axes=0)(jnp.array([0.5, 0.25]))
    examine(stack)
    nnx.jit(nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry))(stack, X)
    found = nnx.to_pure_dict(nnx.state(stack, Examined))["health"]
    assert found.keys() == {"spectral_radius", "jacobian_norm"}  # this gradient solves nothing
    np.testing.assert_allclose(found["spectral_radius"], [0.5, 0.25], rtol=1e-5)


def test_a_plain_closure_works_and_warns(layer):
    with pytest.warns(UserWarning, match=r"diagnostics were not updated.*nnx\.jit"):
        value = jax.jit(lambda x: layer(x))(X)
    np.testing.assert_allclose(value, 2.0, rtol=2e-3)
    assert read(layer)["steps"] == 0


def test_are_neither_parameters_nor_differentiated(layer):
    assert len(jax.tree.leaves(nnx.state(layer, nnx.Param))) == 1
    gradient = nnx.grad(lambda layer: layer(X).sum())(layer)
    assert len(jax.tree.leaves(gradient)) == 1
