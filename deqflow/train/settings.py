"""The `train:` section of a config."""

import dataclasses
from typing import Annotated, Literal

from deqflow.registry import Range, check_ranges


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
      sharding: what each of several devices holds of parameters, averages and optimizer state: all of it, or its part (`full`), which takes
        less memory and more communication. Every device works on its part of a batch.

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
    sharding: Literal["replicated", "full"] = "replicated"

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))
