"""From a config to the objects of a run, before any example is read."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from deqflow.config import Config
from deqflow.data.source import Source
from deqflow.data.spec import DataSpec
from deqflow.machine.placement import Placement
from deqflow.registry import UserError
from deqflow.tasks.task import Task
from deqflow.train.precision import require_sound
from deqflow.train.step import Program, Stream, abstract_batch, random_key


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The objects that a config describes.

    Attributes:
      source: the data, of which `spec` alone has been read.
      spec: what the data look like.
      task: what the model is trained for.
      make_model: makes the model with its first random parameters; also under `jax.eval_shape`.
    """

    config: Config
    source: Source
    spec: DataSpec
    task: Task
    make_model: Callable[[], nnx.Module]

    @property
    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of a training batch."""
        return abstract_batch(self.spec, self.source.batch_size)

    def program(self, model: nnx.Module, *, everywhere: bool = False) -> Program:
        """The compiled functions of the run.

        Args:
          model: the network, on which the structure is read.
          everywhere: for all devices, as `train.sharding` says; otherwise for one.

        Raises:
          UserError: if the model cannot take the data, or does not give what the task needs, or the devices cannot share a batch.
        """
        config = self.config
        optimizer, settings = config.optim.build(), config.train.build()
        if settings.compute == "bfloat16":
            require_sound(self.task)
        placement = Placement.everywhere(full=settings.sharding == "full") if everywhere else Placement.here()
        placement.require_divisible(self.source.batch_size, settings.accumulate)
        try:
            return Program(model, self.task, optimizer, settings, config.seed, self.batch, placement)
        except (ValueError, TypeError) as error:
            shapes = ", ".join(f"{name} {part.dtype}{list(part.shape)}" for name, part in self.batch.items())
            raise UserError(
                f"model {config.model.kind} and task {config.task.kind} do not work on data {config.data.kind} ({shapes}): {error}"
            ) from error


def assemble(config: Config) -> Assembly:
    """Build the data source, the task and the means to make the model.

    Raises:
      UserError: if a component refuses its arguments; the message names the place in the config.
    """
    source = config.data.build()
    spec = source.spec()
    runtime: dict[str, Any] = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}

    def make_model() -> nnx.Module:
        return config.model.build(**runtime, rngs=nnx.Rngs(random_key(config.seed, Stream.PARAMETERS)))

    return Assembly(config, source, spec, config.task.build(**runtime), make_model)
