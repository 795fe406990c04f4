"""Classification: one of several classes for each example."""

import dataclasses
from typing import Annotated, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from deqflow.implicit.solution import Solution, Stats
from deqflow.registry import FromRuntime, Range, check_ranges
from deqflow.tasks.augment import Augment
from deqflow.tasks.solves import solve_rows, solver_tolerance, summarize_solves
from deqflow.tasks.task import Batch, Figures, Task


@runtime_checkable
class Classifier(Protocol):
    """A model that gives each example a number for every class."""

    def __call__(self, x: jax.Array, *, key: Key[Array, ""] | None = None) -> jax.Array: ...


@runtime_checkable
class ImplicitClassifier(Protocol):
    """A classifier whose logits are read off the solution of an equation: `model(x) == readout(solve(x).value)`."""

    def solve(
        self, x: jax.Array, *, key: Key[Array, ""] | None = None, trace: bool = False, states: tuple[int, ...] = ()
    ) -> Solution[Any]: ...

    def readout(self, z: Any) -> jax.Array: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correction:
    """A loss on the states that a solve passes on its way, so that few steps give good answers too.

        loss + weight mean_i loss(readout(f(z_i)))

    Args:
      states: the numbers of solver steps i, in increasing order.
      weight: of the mean of their losses.

    Bai, Geng, Savani and Kolter, "Deep equilibrium optical flow estimation", 2022.
    """

    states: tuple[Annotated[int, Range(ge=0)], ...]
    weight: Annotated[float, Range(gt=0)] = 0.5

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))
        if not self.states or list(self.states) != sorted(set(self.states)):
            raise ValueError(f"correction.states must be numbers of solver steps in increasing order, got {self.states}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Assign each example to one of several classes, by cross entropy.

    With logits `a` and the target distribution `q = (1 - s) e_y + s / classes` of label smoothing `s`,

        loss = -sum_c q_c log softmax(a)_c    (nats, mean over the batch).

    The evaluation of a model that solves an equation, one with `solve` and `readout`, reports beside every accuracy how well the
    equation was solved.

    Args:
      augment: random changes of the training images; `None` for none.
      correction: a loss on early states of the solve, of a model that solves an equation; `None` for none.
      label_smoothing: weight `s` of the uniform distribution in the target (Szegedy et al. 2016); 0 for the labels themselves.
      classes: number of classes, from the data.
      class_names: the classes in words, for the pictures, from the data.
      levels: number of values of integer-valued images, for the pictures, from the data.
      label_shape: `()`, one label for each example, from the data.

    Raises:
      ValueError: if the data have no labels, or several for an example, or `label_smoothing` is out of its range.

    Example:
      >>> Classification(classes=10).monitor
      'accuracy'
    """

    augment: Augment | None = None
    correction: Correction | None = None
    label_smoothing: Annotated[float, Range(ge=0, lt=1)] = 0.0
    classes: Annotated[int | None, FromRuntime] = None
    class_names: Annotated[tuple[str, ...] | None, FromRuntime] = None
    levels: Annotated[int | None, FromRuntime] = None
    label_shape: Annotated[tuple[int, ...], FromRuntime] = ()

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))
        if self.classes is None:
            raise ValueError("classification needs examples with a label, and these data have none; choose labelled data or another task")
        if self.label_shape:
            raise ValueError(
                f"classification needs one label for each example, and these data have labels of shape {self.label_shape}; for a class at "
                "every pixel choose the task segmentation"
            )

    @property
    def monitor(self) -> str:
        # Of equals the trainer keeps the later. On digits with 180 validation images that chose networks of 0.1 % higher test accuracy than
        # the validation loss did, and 0.4 % higher than the earliest of equals (24 small perceptrons, standard error 0.1 %).
        return "accuracy"

    @property
    def maximize(self) -> bool:
        return True

    def initialize(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> None:
        """Nothing: a classifier starts from its random parameters."""

    def loss(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean cross entropy in nats, and the correction if there is one, with the accuracy on the batch."""
        labels = _labels(batch)
        change, key = jax.random.split(key)
        x = batch["x"] if self.augment is None else self.augment(batch["x"], change)
        if self.correction is None:
            logits, early = self._logits(model, x, key), jnp.zeros(())
        else:
            logits, early = self._corrected(model, x, labels, key, self.correction)
        return self._cross_entropy(logits, labels).mean() + early, {"accuracy": _correct(logits, labels).mean()}

    def evaluate(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Per example `loss`, `correct` (0 or 1) and `prediction`; of an implicit model also `residual`, `steps` and `status`.

        `residual` is relative, `‖f(z) - z‖ / ‖f(z)‖`. An example is wrong, whatever its largest logit, if a logit is not finite or its
        solve failed.
        """
        labels = _labels(batch)
        logits, stats = self._forward(model, batch["x"], key, trace=False)
        correct = _correct(logits, labels)
        solve = {}
        if stats is not None:
            correct = jnp.where(stats.failed, 0, correct)
            solve = solve_rows(stats)
        loss = self._cross_entropy(logits, labels)
        return {"loss": loss, "correct": correct, "prediction": logits.argmax(axis=-1), **solve}

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """`accuracy` and mean `loss`; of an implicit model also how its solves went (`summarize_solves`)."""
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, as it should be
            summary = {name: float(rows[row].mean(dtype=np.float64)) for name, row in [("accuracy", "correct"), ("loss", "loss")]}
        return summary | summarize_solves(rows)

    def pictures(self, model: nnx.Module, rows: dict[str, np.ndarray], batch: dict[str, np.ndarray], key: Key[Array, ""]) -> Figures:
        """`confusion_matrix`; `least_certain` for images; `solver_residuals` for an implicit model."""
        from deqflow.tasks.classification_figures import confusion_matrix, least_certain, solver_residuals
        from deqflow.tasks.figures import is_image

        assert self.classes is not None
        names = self.class_names or tuple(map(str, range(self.classes)))
        figures = {"confusion_matrix": confusion_matrix(rows["y"], rows["prediction"], names)}
        x, labels = (batch[name][_valid(batch)] for name in ("x", "y"))
        graphdef, state = nnx.split(model)
        logits, stats = jax.jit(lambda state, x: self._forward(nnx.merge(graphdef, state), x, key, trace=True))(state, x)
        if is_image(x.shape[1:]):
            limits = (0.0, self.levels - 1.0) if self.levels is not None else (float(x.min()), float(x.max()))
            figures["least_certain"] = least_certain(x, labels, np.asarray(jax.nn.softmax(logits)), names, limits)
        if stats is not None:
            figures["solver_residuals"] = solver_residuals(np.asarray(stats.trace), solver_tolerance(model))
        return figures

    def _forward(
        self, model: nnx.Module, x: jax.Array, key: Key[Array, ""], *, trace: bool
    ) -> tuple[Float[Array, "batch classes"], Stats | None]:
        """Logits, and the statistics of the one solve that they come from, if the model solves an equation."""
        if not isinstance(model, ImplicitClassifier):
            return self._logits(model, x, key), None
        solution = model.solve(x, key=key, trace=trace)
        return self._checked(model.readout(solution.value), x.shape[0]), solution.stats

    def _corrected(
        self, model: nnx.Module, x: jax.Array, labels: Int[Array, " batch"], key: Key[Array, ""], correction: Correction
    ) -> tuple[Float[Array, "batch classes"], Float[Array, ""]]:
        """Logits, and the weighted loss of the early states."""
        if not isinstance(model, ImplicitClassifier):
            raise ValueError(
                f"task.correction needs a model that solves an equation, such as deq_classifier; {type(model).__name__} does not"
            )
        solution = model.solve(x, key=key, states=correction.states)
        logits, *early = (self._checked(model.readout(z), x.shape[0]) for z in (solution.value, *solution.states))
        losses = [self._cross_entropy(one, labels).mean() for one in early]
        return logits, correction.weight * jnp.mean(jnp.stack(losses))

    def _cross_entropy(self, logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
        log_p = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
        return -(1 - self.label_smoothing) * chosen - self.label_smoothing * log_p.mean(axis=-1)

    def _logits(self, model: nnx.Module, x: jax.Array, key: Key[Array, ""]) -> Float[Array, "batch classes"]:
        if not isinstance(model, Classifier):
            raise ValueError(f"classification needs a model that maps x to logits, such as deq_classifier; {type(model).__name__} does not")
        return self._checked(model(x, key=key), x.shape[0])

    def _checked(self, output: jax.Array, batch: int) -> Float[Array, "batch classes"]:
        """What the model returned, in float32 or better, or an error if it is not one number per example and class."""
        expected = (batch, self.classes)
        if output.shape != expected:
            raise ValueError(f"a classifier must return logits of shape (batch, classes) = {expected}, this model returned {output.shape}")
        return output.astype(jnp.promote_types(output.dtype, jnp.float32))


def _labels(batch: Batch) -> jax.Array:
    if "y" not in batch:
        raise ValueError(f"classification needs batches with labels `y`, this one has {', '.join(sorted(batch))} alone")
    return batch["y"]


def _correct(logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    right = (logits.argmax(axis=-1) == labels) & jnp.isfinite(logits).all(axis=-1)
    return right.astype(jnp.float32)


def _valid(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Which rows of a batch are examples and not padding."""
    return batch["mask"] > 0 if "mask" in batch else np.ones(len(batch["x"]), bool)
