"""Text from a language model, token by token."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from deqflow.implicit import Solution
from deqflow.models.token_embedding import Tokens


@runtime_checkable
class LanguageModel(Protocol):
    """A model that gives every position of a window the logits of the token after it."""

    def __call__(self, tokens: jax.Array, *, key: Key[Array, ""] | None = None) -> jax.Array: ...


@runtime_checkable
class ImplicitLanguageModel(Protocol):
    """A language model whose logits are read off the solution of an equation: `model(x) == readout(solve(x).value)`."""

    def solve(self, tokens: jax.Array, *, key: Key[Array, ""] | None = None, z0: Any = None, trace: bool = False) -> Solution[Any]: ...

    def readout(self, z: Any) -> jax.Array: ...


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
      tokens: the new tokens.
      steps: solver steps of each new window, `None` for an explicit model.
    """

    tokens: Int[Array, "batch count"]
    steps: Int[Array, "batch count"] | None


def generate(
    model: nnx.Module, prompt: Tokens, count: int, key: Key[Array, ""], *, temperature: float = 1.0, warm: bool = True
) -> Generated:
    """Continue a text by sampling one token at a time from a window that moves along with it.

        t ~ softmax(logits of the last position / temperature),   window <- window[1:] + [t]

    The equilibrium of a moved window is close to that of the window before, moved by one position, so each solve starts from there, the
    new position from its neighbour's state.

    Args:
      model: a `LanguageModel`, or an `ImplicitLanguageModel`.
      prompt: the first window, as long as those that the model was trained on.
      count: number of new tokens.
      key: of the random choices.
      temperature: below 1 for likelier text, above for more varied text.
      warm: whether a solve starts from the equilibrium before; with `False` it starts from the cell's initial state.

    Returns:
      The new tokens, and what they cost.

    Example:
      >>> from deqflow.models.transformer import Transformer
      >>> model = Transformer(width=8, heads=2, input_shape=(5,), vocabulary=tuple("abc"), rngs=nnx.Rngs(0))
      >>> generate(model, jnp.zeros((2, 4), jnp.int32), 3, jax.random.key(0)).tokens.shape
      (2, 3)
    """
    graph, state = nnx.split(model)

    def read(window: Tokens, z0: Any) -> tuple[Float[Array, "batch vocabulary"], Any, Any]:
        """The logits of the last position, with the equilibrium and the solver's steps where there are such."""
        model = nnx.merge(graph, state, copy=True)  # a copy made inside the loop, where a module may record its diagnostics
        if not isinstance(model, ImplicitLanguageModel):
            return model(window)[:, -1], None, None
        z, stats = model.solve(window, z0=z0 if warm else None)
        return model.readout(z[:, -1:])[:, 0], z, stats.steps

    def advance(carry: tuple[Tokens, Any, Any], key: Key[Array, ""]) -> tuple[tuple[Tokens, Any, Any], tuple[Array, Any]]:
        window, logits, z = carry
        token = jax.random.categorical(key, logits / temperature).astype(window.dtype)
        window = jnp.concatenate([window[:, 1:], token[:, None]], axis=1)
        moved = jax.tree.map(lambda z: jnp.concatenate([z[:, 1:], z[:, -1:]], axis=1), z)
        logits, z, steps = read(window, moved)
        return (window, logits, z), (token, steps)

    logits, z, _ = read(prompt, None)
    _, (tokens, steps) = jax.lax.scan(advance, (prompt, logits, z), jax.random.split(key, count))
    return Generated(tokens.T, None if steps is None else steps.T)
