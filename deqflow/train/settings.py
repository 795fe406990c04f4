"""The `train:` section of a config."""

import dataclasses
from typing import Annotated, Literal

from deqflow.registry import Range, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """Which updates are not made, and when a run has diverged.

    An update is refused, as if its batch had not been there, if the loss or the gradient is not finite, if too many solves fail, or if the
    loss stands out. After a number of refusals in a row the run has diverged: it goes back to its last sound checkpoint and on to other
    batches, or ends.

    Args:
      failures: refuse an update in which more than this share of the solves failed; their samples have no gradient.
      spike: refuse an update whose loss exceeds the running mean of the last 50 by this many mean absolute deviations; `None` for no limit.
      in_a_row: so many refusals in a row are a divergence.
      retries: how often a run goes back before it ends.

    Raises:
      ValueError: if a number is out of its range.
    """

    failures: Annotated[float, Range(gt=0, le=1)] = 0.5
    spike: Annotated[float, Range(gt=0)] | None = None
    in_a_row: Annotated[int, Range(ge=1)] = 10
    retries: Annotated[int, Range(ge=0)] = 2

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long to train, and how often to log, evaluate and save.

    Args:
      steps: parameter updates in all.
      log_every: updates between two rows of training numbers, which are means over the updates in between.
      eval_every: updates between two passes over the validation split.
      checkpoint_every: updates between two checkpoints. The best step by the task's validation metric is kept besides.
      keep: how many of the newest checkpoints stay on disk.
      ema: decay of the exponential moving average of the parameters that is evaluated, saved and sampled from in place of the
        parameters themselves (Polyak and Juditsky 1992); `None` for none. The decay is warmed up as `(1 + t) / (10 + t)`.
      patience: stop early after this many evaluations in a row without a better validation metric; `None` to run all steps.
      select: which parameters are tested and loaded at the end: those of the best validation metric, or the last ones.
      accumulate: in how many parts, one after the other, a batch is worked on; their gradients are averaged, so that a step is that of the
        whole batch and needs the memory of a part.
      sharding: what each of several devices holds of parameters, averages and optimizer state: all of it, or its part (`full`), which takes
        less memory and more communication. Every device works on its part of a batch.
      compute: the type in which a step evaluates and differentiates the model. With `bfloat16` parameters and inputs are rounded to it for
        that, once per step; what is kept, updated, averaged and evaluated stays float32, and so do losses and the sums inside of solvers.
        The state of an equilibrium has three digits then, so that its solver's `rtol` should be 1e-2. Not for densities.
      guard: which updates are not made, and when a run has diverged.

    Raises:
      ValueError: if a number is out of its range.
    """

    steps: Annotated[int, Range(ge=1)]
    log_every: Annotated[int, Range(ge=1)] = 20
    eval_every: Annotated[int, Range(ge=1)] = 200
    checkpoint_every: Annotated[int, Range(ge=1)] = 200
    keep: Annotated[int, Range(ge=1)] = 2
    ema: Annotated[float, Range(gt=0, lt=1)] | None = None
    patience: Annotated[int, Range(ge=1)] | None = None
    select: Literal["best", "last"] = "best"
    accumulate: Annotated[int, Range(ge=1)] = 1
    sharding: Literal["replicated", "full"] = "replicated"
    compute: Literal["float32", "bfloat16"] = "float32"
    guard: Guard = Guard()

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))
