"""The flat state: names, and the way from a model to leaves and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from deqflow.machine.leaves import section
from deqflow.train.state import Layout, named, restore


class Net(nnx.Module):
    """Parameters in a list, a variable that is no parameter, and dropout."""

    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.dropout(self.norm(x), rngs=jax.random.key(0))


def test_leaves_are_named_by_their_path():
    leaves = Layout.of(model := Net(nnx.Rngs(0))).leaves(model)
    assert "params/blocks.10.kernel" in leaves
    assert "model/norm.mean" in leaves
    assert {name.partition("/")[0] for name in leaves} == {"params", "model"}


def test_model_and_leaves_are_inverse():
    model = Net(nnx.Rngs(0))
    layout = Layout.of(model)
    leaves = {name: leaf + index for index, (name, leaf) in enumerate(layout.leaves(model).items())}
    again = layout.leaves(layout.model(leaves, training=False))
    assert again.keys() == leaves.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(again[name], leaf)


def test_mode_switches_dropout():
    model = Net(nnx.Rngs(0))
    layout = Layout.of(model)
    leaves = layout.leaves(model)
    assert not layout.model(leaves, training=True).dropout.deterministic
    assert layout.model(leaves, training=False).dropout.deterministic


def test_averaged_parameters_are_used_outside_training_alone():
    model = Net(nnx.Rngs(0))
    layout = Layout.of(model)
    leaves = layout.leaves(model)
    leaves |= {name.replace("params/", "average/"): leaf + 1 for name, leaf in section(leaves, "params").items()}
    np.testing.assert_array_equal(layout.model(leaves, training=True).norm.scale[...], 1.0)
    np.testing.assert_array_equal(layout.model(leaves, training=False).norm.scale[...], 2.0)


def test_named_and_restore_are_inverse_on_an_optimizer_state():
    memory = optax.adamw(lambda step: 0.1).init({"params/b": jnp.ones(2), "params/a": jnp.zeros((2, 2))})
    leaves = {name: leaf + 1 for name, leaf in named(memory, "optimizer").items()}
    again = restore(memory, leaves, "optimizer")
    assert jax.tree.structure(again) == jax.tree.structure(memory)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y + 1), again, memory)


def test_a_variable_named_value_keeps_its_name():
    class Odd(nnx.Module):
        def __init__(self):
            self.value = nnx.Param(jnp.ones(1))
            self.other = nnx.Param(jnp.zeros(1))

    assert list(Layout.of(odd := Odd()).leaves(odd)) == ["params/other", "params/value"]
