"""Optimizers and schedules: the `optim:` section of a config, built on optax."""

import abc
import dataclasses
from typing import Annotated, final

import jax
import optax

from deqflow.registry import Range, check_ranges


class Schedule(abc.ABC):
    """A number that changes with the training step."""

    @abc.abstractmethod
    def function(self, steps: int) -> optax.Schedule:
        """The value as a function of the step, for a run of `steps` updates in all."""


class Optimizer(abc.ABC):
    """How parameters are updated from gradients."""

    @abc.abstractmethod
    def transform(self, steps: int) -> optax.GradientTransformation:
        """The optax transformation for a run of `steps` updates in all.

        Parameters arrive as a flat dictionary of arrays by name.
        """


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same value throughout, after a linear warm-up from zero.

    Args:
      value: the value after the warm-up.
      warmup: updates of the warm-up.

    Example:
      >>> rate = Constant(value=0.1, warmup=10).function(steps=100)
      >>> round(float(rate(5)), 3), round(float(rate(50)), 3)
      (0.05, 0.1)
    """

    value: Annotated[float, Range(ge=0)]
    warmup: Annotated[int, Range(ge=0)] = 0

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def function(self, steps: int) -> optax.Schedule:
        del steps
        return _after_warmup(self.warmup, self.value, optax.constant_schedule(self.value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decay(Schedule):
    """A linear warm-up from zero to a peak, then a decay to an end value.

    Args:
      peak: the value at the end of the warm-up.
      warmup: updates of the warm-up.
      end: the value at the last step.
    """

    peak: Annotated[float, Range(ge=0)]
    warmup: Annotated[int, Range(ge=0)] = 0
    end: Annotated[float, Range(ge=0)] = 0.0

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def function(self, steps: int) -> optax.Schedule:
        return _after_warmup(self.warmup, self.peak, self.decay(max(steps - self.warmup, 1)))

    @abc.abstractmethod
    def decay(self, steps: int) -> optax.Schedule:
        """The way from `peak` to `end` in `steps` updates."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Decay):
    """Half a cosine from the peak to the end value, after a linear warm-up from zero (Loshchilov and Hutter 2017).

    With `t` the share of the steps after the warm-up that are done, the value is `end + (peak - end) (1 + cos πt) / 2`.

    Example:
      >>> rate = Cosine(peak=1.0, warmup=10, end=0.0).function(steps=110)
      >>> [round(float(rate(t)), 3) for t in (0, 10, 60, 110)]
      [0.0, 1.0, 0.5, 0.0]
    """

    def decay(self, steps: int) -> optax.Schedule:
        ratio = self.end / self.peak if self.peak > 0 else 0.0
        return optax.cosine_decay_schedule(self.peak, steps, ratio)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Decay):
    """A straight line from the peak to the end value, after a linear warm-up from zero.

    Example:
      >>> rate = Linear(peak=1.0, warmup=10, end=0.5).function(steps=110)
      >>> [round(float(rate(t)), 3) for t in (0, 10, 60, 110)]
      [0.0, 1.0, 0.75, 0.5]
    """

    def decay(self, steps: int) -> optax.Schedule:
        return optax.linear_schedule(self.peak, self.end, steps)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay and clipping by the global norm (Loshchilov and Hutter 2019).

    The decay acts on parameters with two axes or more (kernels), not on biases, gains and scales, whose size is no
    measure of complexity.

    Args:
      lr: learning rate, a number or a schedule.
      b1: decay of the mean of gradients.
      b2: decay of the mean of squared gradients.
      eps: added to the root of the squared mean.
      weight_decay: each update takes `lr * weight_decay` of a parameter away.
      clip: gradients of a greater global 2-norm are scaled down to it; `None` for no clipping.

    Raises:
      ValueError: if a number is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> transform = AdamW(lr=0.1, clip=1.0).transform(steps=10)
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> updates, _ = transform.update(params, transform.init(params), params)
      >>> round(float(updates["kernel"][0, 0]), 3)
      -0.1
    """

    lr: Annotated[float, Range(gt=0)] | Schedule
    b1: Annotated[float, Range(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Range(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Range(gt=0)] = 1e-8
    weight_decay: Annotated[float, Range(ge=0)] = 0.0
    clip: Annotated[float, Range(gt=0)] | None = None

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def transform(self, steps: int) -> optax.GradientTransformation:
        adamw = optax.adamw(
            self.lr.function(steps) if isinstance(self.lr, Schedule) else self.lr,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        )
        return adamw if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), adamw)


def _after_warmup(warmup: int, peak: float, rest: optax.Schedule) -> optax.Schedule:
    if warmup == 0:
        return rest
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rest], [warmup])
