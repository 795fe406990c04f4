"""Segmentation: a class for every pixel of an image."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.implicit.solution import Stats
from deqflow.registry import FromRuntime
from deqflow.tasks.classification import ImplicitClassifier
from deqflow.tasks.solves import solve_rows, solver_tolerance, summarize_solves
from deqflow.tasks.task import Batch, Figures, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """Give every pixel of an image one of several classes, by cross entropy.

        loss = -1/P sum_{p=1}^P log softmax(a_p)_{y_p}    (nats per pixel, mean over the batch)

    Reported beside it are `pixel_accuracy` and `exact`, the share of images without a wrong pixel, and how well the equation was solved.

    Args:
      classes: number of classes of a pixel, from the data.
      class_names: the classes in words, for the pictures, from the data.
      levels: number of values of integer-valued images, for the pictures, from the data.
      label_shape: `(height, width)`, from the data.

    Raises:
      ValueError: if the data have no label for every pixel.

    Example:
      >>> Segmentation(classes=2, label_shape=(11, 11)).monitor
      'exact'
    """

    classes: Annotated[int | None, FromRuntime] = None
    class_names: Annotated[tuple[str, ...] | None, FromRuntime] = None
    levels: Annotated[int | None, FromRuntime] = None
    label_shape: Annotated[tuple[int, ...], FromRuntime] = ()

    def __post_init__(self) -> None:
        if self.classes is None or len(self.label_shape) != 2:
            raise ValueError("segmentation needs images with a label for every pixel, and these data have none; choose data such as mazes")

    @property
    def monitor(self) -> str:
        return "exact"

    @property
    def maximize(self) -> bool:
        return True

    def initialize(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> None:
        """Nothing: a segmenter starts from its random parameters."""

    def loss(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean cross entropy in nats per pixel, with the pixel accuracy on the batch."""
        logits, _ = self._forward(model, batch["x"], key)
        return _cross_entropy(logits, batch["y"]).mean(), {"pixel_accuracy": _right(logits, batch["y"]).mean()}

    def evaluate(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Per image `loss` and `pixel_accuracy`, means over its pixels, `exact` (0 or 1), and `residual`, `steps` and `status`.

        An image whose solve failed is wrong in every pixel.
        """
        logits, stats = self._forward(model, batch["x"], key)
        right = jnp.where(stats.failed[:, None, None], 0, _right(logits, batch["y"]))
        return {
            "loss": _cross_entropy(logits, batch["y"]).mean(axis=(1, 2)),
            "pixel_accuracy": right.mean(axis=(1, 2)),
            "exact": right.min(axis=(1, 2)),
            **solve_rows(stats),
        }

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """`exact`, `pixel_accuracy` and mean `loss`, and how the solves went (`summarize_solves`)."""
        summary = {name: float(rows[name].mean(dtype=np.float64)) for name in ("exact", "pixel_accuracy", "loss")}
        return summary | summarize_solves(rows)

    def pictures(self, model: nnx.Module, rows: dict[str, np.ndarray], batch: dict[str, np.ndarray], key: Key[Array, ""]) -> Figures:
        """`hardest`, the images with the largest loss, and `solver_residuals`."""
        from deqflow.tasks.classification_figures import solver_residuals
        from deqflow.tasks.segmentation_figures import hardest

        x, y = batch["x"], batch["y"]
        if "mask" in batch:
            x, y = x[batch["mask"] > 0], y[batch["mask"] > 0]
        graph, state = nnx.split(model)
        logits, stats = jax.jit(lambda state, x: self._forward(nnx.merge(graph, state), x, key, trace=True))(state, x)
        limits = (0.0, self.levels - 1.0) if self.levels is not None else (float(x.min()), float(x.max()))
        loss = np.asarray(_cross_entropy(logits, jnp.asarray(y)).mean(axis=(1, 2)))
        return {
            "hardest": hardest(x, y, np.asarray(logits.argmax(axis=-1)), loss, limits),
            "solver_residuals": solver_residuals(np.asarray(stats.trace), solver_tolerance(model)),
        }

    def _forward(
        self, model: nnx.Module, x: jax.Array, key: Key[Array, ""], *, trace: bool = False
    ) -> tuple[Float[Array, "batch height width classes"], Stats]:
        """Logits of every pixel, and the statistics of the solve that they come from."""
        if not isinstance(model, ImplicitClassifier):
            raise ValueError(f"segmentation needs a model that solves an equation, such as deq_segmenter; {type(model).__name__} does not")
        solution = model.solve(x, key=key, trace=trace)
        logits = model.readout(solution.value)
        expected = (*x.shape[:3], self.classes)
        if logits.shape != expected:
            raise ValueError(
                f"segmentation needs logits of shape (batch, height, width, classes) = {expected}, this model returned {logits.shape}"
            )
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), solution.stats


def _cross_entropy(logits: Float[Array, "batch height width classes"], labels: Array) -> Float[Array, "batch height width"]:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]


def _right(logits: Float[Array, "batch height width classes"], labels: Array) -> Float[Array, "batch height width"]:
    return ((logits.argmax(axis=-1) == labels) & jnp.isfinite(logits).all(axis=-1)).astype(jnp.float32)
