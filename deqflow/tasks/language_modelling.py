"""Language modelling: the probability of the next token."""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.implicit.solution import Stats
from deqflow.models.generate import ImplicitLanguageModel, LanguageModel, generate
from deqflow.registry import FromRuntime
from deqflow.tasks.solves import solve_rows, solver_tolerance, summarize_solves
from deqflow.tasks.task import Batch, Figures, Task

_WORD_END = "<eos>"  # the end of a line, where tokens are words


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelling(Task):
    """Predict every token of a window from those before it, by cross entropy.

        loss = -1/T sum_{i=1}^T log p(t_{i+1} | t_1 ... t_i)    (nats per token, mean over windows)

    Reported beside it are `bits_per_token`, `loss / ln 2`, which for characters is known as bits per character, and `perplexity`,
    `exp(loss)`. The first tokens of a window are predicted from few others, so all three improve with the length of the windows. The
    evaluation of a model that solves an equation, one with `solve` and `readout`, reports beside the loss how well it was solved.

    Args:
      vocabulary: the tokens, from the data.
      input_shape: `(context + 1,)`, the shape of a window, from the data.

    Raises:
      ValueError: if the data are no text.

    Example:
      >>> LanguageModelling(vocabulary=tuple("abc"), input_shape=(9,)).monitor
      'loss'
    """

    vocabulary: Annotated[tuple[str, ...] | None, FromRuntime] = None
    input_shape: Annotated[tuple[int, ...], FromRuntime] = ()

    def __post_init__(self) -> None:
        if self.vocabulary is None:
            raise ValueError("language modelling needs windows of tokens, and these data have no vocabulary; choose data such as text")

    @property
    def monitor(self) -> str:
        return "loss"

    @property
    def maximize(self) -> bool:
        return False

    def initialize(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> None:
        """Nothing: a language model starts from its random parameters."""

    def loss(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean cross entropy in nats per token."""
        return _next_token_loss(self._forward(model, batch["x"], key)[0], batch["x"]).mean(), {}

    def evaluate(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Per window `loss`, a number for each of its tokens; of an implicit model also `residual`, `steps` and `status`.

        The loss of a window whose solve failed is infinite.
        """
        logits, stats = self._forward(model, batch["x"], key)
        loss = _next_token_loss(logits, batch["x"])
        if stats is None:
            return {"loss": loss}
        return {"loss": jnp.where(stats.failed[:, None], jnp.inf, loss), **solve_rows(stats)}

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """`loss`, `bits_per_token` and `perplexity`; of an implicit model also how its solves went (`summarize_solves`)."""
        with np.errstate(over="ignore"):
            loss = float(rows["loss"].mean(dtype=np.float64))
            summary = {"loss": loss, "bits_per_token": loss / math.log(2), "perplexity": float(np.exp(loss))}
        return summary | summarize_solves(rows)

    def pictures(self, model: nnx.Module, rows: dict[str, np.ndarray], batch: dict[str, np.ndarray], key: Key[Array, ""]) -> Figures:
        """`loss_by_position`: what a longer context is worth; `solver_residuals` for an implicit model."""
        from deqflow.tasks.classification_figures import solver_residuals
        from deqflow.tasks.language_figures import loss_by_position

        figures = {"loss_by_position": loss_by_position(rows["loss"])}
        if isinstance(model, ImplicitLanguageModel):
            graph, state = nnx.split(model)
            x = batch["x"][batch["mask"] > 0] if "mask" in batch else batch["x"]
            trace = jax.jit(lambda state, x: self._forward(nnx.merge(graph, state), x, key, trace=True)[1])(state, x)
            figures["solver_residuals"] = solver_residuals(np.asarray(trace.trace), solver_tolerance(model))
        return figures

    def sample(self, model: nnx.Module, n: int, length: int, key: Key[Array, ""]) -> list[str]:
        """Let the model write `n` texts of `length` tokens, each after a window of line ends."""
        assert self.vocabulary is not None
        graph, state = nnx.split(model)
        start = next((self.vocabulary.index(end) for end in ("\n", _WORD_END) if end in self.vocabulary), 0)
        prompt = jnp.full((n, self.input_shape[0] - 1), start, jnp.int32)
        tokens = jax.jit(lambda state, prompt: generate(nnx.merge(graph, state), prompt, length, key).tokens)(state, prompt)
        return [self.text(row) for row in np.asarray(tokens)]

    def text(self, tokens: np.ndarray) -> str:
        """What tokens say: characters one after the other, words with spaces between them."""
        assert self.vocabulary is not None
        parts = [self.vocabulary[token] for token in tokens]
        if _WORD_END not in self.vocabulary:
            return "".join(parts)
        return " ".join(parts).replace(f" {_WORD_END} ", "\n")

    def _forward(
        self, model: nnx.Module, x: jax.Array, key: Key[Array, ""], *, trace: bool = False
    ) -> tuple[Float[Array, "batch time vocabulary"], Stats | None]:
        """Logits of every token but the first, and the statistics of the solve that they come from, if the model solves an equation."""
        tokens, stats = x[:, :-1], None
        if isinstance(model, ImplicitLanguageModel):
            z, stats = model.solve(tokens, key=key, trace=trace)
            logits = model.readout(z)
        elif isinstance(model, LanguageModel):
            logits = model(tokens, key=key)
        else:
            raise ValueError(
                f"language modelling needs a model that maps tokens to logits, such as transformer; got {type(model).__name__}"
            )
        assert self.vocabulary is not None
        expected = (*tokens.shape, len(self.vocabulary))
        if logits.shape != expected:
            raise ValueError(
                f"a language model must return logits (batch, time, vocabulary) = {expected}, this model returned {logits.shape}"
            )
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), stats


def _next_token_loss(logits: Float[Array, "batch time vocabulary"], x: Array) -> Float[Array, "batch time"]:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), x[:, 1:, None], axis=-1)[..., 0]
