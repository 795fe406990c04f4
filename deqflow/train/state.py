"""The training state: one flat dictionary of arrays by name, and what is needed to read a model out of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import GetAttrKey

from deqflow.deq import Diagnostics
from deqflow.machine.leaves import Leaves, Shapes, section


def named(tree: Any, role: str) -> dict[str, Any]:
    """The leaves of any pytree by `role/path`, in the tree's order."""
    return dict(zip(_names(tree, role), jax.tree.leaves(tree), strict=True))


def restore(tree: Any, leaves: Mapping[str, jax.Array], role: str) -> Any:
    """The inverse of `named`: a tree of the structure of `tree` with the leaves of that role."""
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in _names(tree, role)])


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model is cut into leaves and put together again.

    The module's structure is kept twice, in training and in evaluation mode; the arrays are the same. `Diagnostics` are
    outputs of a call and not part of the state, so they are kept here as they are at the start.
    """

    graphs: dict[bool, nnx.GraphDef]  # by "in training mode"
    params: nnx.State  # the structure alone matters: shapes in place of arrays
    variables: nnx.State
    diagnostics: nnx.State

    @classmethod
    def of(cls, model: nnx.Module) -> "Layout":
        """Read the structure of `model`, whose mode is left at evaluation."""
        graphs = {}
        for training in (True, False):
            model.train() if training else model.eval()
            graphs[training], params, diagnostics, variables = nnx.split(model, nnx.Param, Diagnostics, ...)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), diagnostics)
        return cls(graphs, _shapes(params), _shapes(variables), zeros)

    def leaves(self, model: nnx.Module) -> Leaves:
        """The parameters and other variables of `model` by name."""
        _, params, _, variables = nnx.split(model, nnx.Param, Diagnostics, ...)
        return named(params, "params") | named(variables, "model")

    @property
    def shapes(self) -> Shapes:
        """The shapes and types of what `leaves` gives."""
        return named(self.params, "params") | named(self.variables, "model")

    def model(self, leaves: Mapping[str, jax.Array], *, training: bool) -> nnx.Module:
        """The module with these leaves; its parameters are the averaged ones where `average` holds them and it is not for training."""
        params = leaves
        if not training and section(leaves, "average"):
            params = {name.replace("average/", "params/", 1): leaf for name, leaf in section(leaves, "average").items()}
        return nnx.merge(
            self.graphs[training],
            restore(self.params, params, "params"),
            jax.tree.map(jnp.asarray, self.diagnostics),  # new variables, which belong to the trace that is under way
            restore(self.variables, leaves, "model"),
        )


def _shapes(state: nnx.State) -> nnx.State:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def _names(tree: Any, role: str) -> list[str]:
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    # Without the `value` attribute in which NNX variables hold their array.
    paths = [path[:-1] if path and path[-1] == GetAttrKey("value") else path for path in paths]
    return [f"{role}/{jax.tree_util.keystr(path, simple=True, separator='.')}" for path in paths]
