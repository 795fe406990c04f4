"""What a config would train and what a step would cost, without reading data or training."""

import dataclasses
import math

import jax
import numpy as np
from flax import nnx

from deqflow.config import Config
from deqflow.machine.flops import Work
from deqflow.machine.leaves import section
from deqflow.machine.refusals import refusals_told, require_device
from deqflow.train.assemble import assemble


@dataclasses.dataclass(frozen=True)
class Check:
    """The size of a model and of one compiled training step.

    Attributes:
      batch: shapes and types of a training batch by name.
      parameters: shape and type of every parameter by name.
      count: number of parameters.
      work: floating-point operations of one training step, as the trainer counts them.
      state_bytes: parameters, optimizer and everything else that is kept between steps.
      temporary_bytes: the most that a step needs besides, by XLA's plan; `None` where the backend does not say.
    """

    batch: dict[str, str]
    parameters: dict[str, tuple[tuple[int, ...], str]]
    count: int
    work: Work
    state_bytes: int
    temporary_bytes: int | None


def check(config: Config) -> Check:
    """Build the model of a config in the abstract and compile its training step.

    Raises:
      UserError: if a component refuses its arguments, or the model cannot take the data.
    """
    require_device()
    with refusals_told("cannot size up the config", "lower data.batch_size, or make the model smaller"):
        assembly = assemble(config)
        program = assembly.program(nnx.eval_shape(assembly.make_model))
        compiled = program.step.lower(program.abstract, assembly.batch).compile()
    memory = compiled.memory_analysis()
    parameters = section(program.abstract, "params")
    return Check(
        batch={name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in assembly.batch.items()},
        parameters={name.partition("/")[2]: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in parameters.items()},
        count=sum(math.prod(leaf.shape) for leaf in parameters.values()),
        work=program.work,
        state_bytes=sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(program.abstract)),
        temporary_bytes=None if memory is None else int(memory.temp_size_in_bytes),
    )
