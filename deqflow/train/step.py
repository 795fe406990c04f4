"""The two compiled functions of a run: one training step, and the evaluation of one batch."""

import enum
import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Int, Key

from deqflow.data.source import Records
from deqflow.data.spec import DataSpec
from deqflow.deq import Examined, at_step, examine, penalties
from deqflow.machine.flops import Work, work_of
from deqflow.machine.leaves import Leaves, Shapes, section
from deqflow.machine.placement import Placement
from deqflow.nn import refresh
from deqflow.optim import Optimizer
from deqflow.tasks.model_reports import certificate, solver_numbers
from deqflow.tasks.task import Batch, Task
from deqflow.train import guard
from deqflow.train.precision import narrowed, widened
from deqflow.train.settings import TrainSettings
from deqflow.train.state import Layout, named, restore

_EXAMINED = 16
"""Examples whose equilibria are examined beside a validation: enough for the size of the numbers, and few to compute."""


class Stream(enum.IntEnum):
    """What a random key is for. Every key is `fold_in(fold_in(key(seed), stream), index)`."""

    PARAMETERS = 0
    INITIALIZE = 1
    LOSS = 2
    EVALUATE = 3
    PICTURES = 4
    SAMPLE = 5


def random_key(seed: int, stream: Stream, index: int | Array = 0) -> Key[Array, ""]:
    """The key of one use, at one step or batch."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), index)


def abstract_batch(spec: DataSpec, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a training batch, known before any data is read."""
    batch = {"x": jax.ShapeDtypeStruct((batch_size, *spec.input_shape), np.dtype(spec.dtype))}
    if spec.classes is not None:
        batch["y"] = jax.ShapeDtypeStruct((batch_size, *spec.label_shape), np.dtype("int32"))
    return batch


class Program:
    """The mathematics of a run, without its files: how the state starts, steps and is evaluated.

    One training step on the state `s` and a batch is
    `g = ∇ (loss + penalties)(s.params)`, `s.optimizer, u = update(g)`, `s.params += u`,
    `s.average = d s.average + (1 - d) s.params`,
    or nothing of it where the guard refuses the update; compiled as one function that may reuse the memory of the old state for the new
    (donation).

    Args:
      model: the network, on which the structure is read; its arrays enter by `initial`.
      batch: shapes and types of a training batch.
      placement: the devices that share the work; one by default.
    """

    def __init__(
        self,
        model: nnx.Module,
        task: Task,
        optimizer: Optimizer,
        settings: TrainSettings,
        seed: int,
        batch: Mapping[str, Any],
        placement: Placement | None = None,
    ) -> None:
        self.layout = Layout.of(model)
        self.task = task
        self.settings = settings
        self.seed = seed
        self.batch = batch
        self.transform = optimizer.transform(settings.steps)
        self.patience = min(settings.guard.in_a_row, settings.steps)  # with refusals
        self.placement = placement if placement is not None else Placement.here()
        # A jit of its own, called inside that of the step: the shapes that are asked for below and the step share one trace.
        self._gradient = jax.jit(self._gradient_of)
        self._numbers = self._told_of_a_step()
        shapes = jax.eval_shape(self._initial, self.layout.shapes)
        places, rows, whole = self.placement.state(shapes), self.placement.rows, self.placement.whole
        self.abstract: Shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[name]) for name, leaf in shapes.items()}
        self.step = jax.jit(self._step, donate_argnums=0, in_shardings=(places, rows), out_shardings=(places, whole))
        self.evaluate = jax.jit(self._evaluate, in_shardings=(places, rows, whole), out_shardings=whole)
        self.examine = jax.jit(self._examine, in_shardings=(places, whole), out_shardings=whole)

    def initial(self, leaves: Leaves) -> Leaves:
        """The whole state at step 0, from copies of the model's leaves, as the first step reuses the memory of the state."""
        leaves = jax.tree.map(jnp.copy, leaves)
        places = {name: leaf.sharding for name, leaf in self.abstract.items()}
        # Before the optimizer makes its own leaves like them, which might not fit on one device.
        leaves = jax.device_put(leaves, {name: places[name] for name in leaves})
        return jax.device_put(self._initial(leaves), places)

    def _told_of_a_step(self) -> Shapes:
        """The numbers to log, of which the state holds sums."""
        params, variables = section(self.layout.shapes, "params"), section(self.layout.shapes, "model")
        _, numbers, _ = jax.eval_shape(self._gradient, params, variables, self.batch, random_key(0, Stream.LOSS), jnp.int32(0))
        return {**numbers, "gradient_norm": jax.ShapeDtypeStruct((), jnp.result_type(*params.values()))}

    def _initial(self, leaves: Leaves) -> Leaves:
        params = section(leaves, "params")
        state = {"step": jnp.zeros((), jnp.int32), **leaves}
        state |= named(self.transform.init(params), "optimizer")
        if self.settings.ema is not None:
            state |= {name.replace("params/", "average/", 1): jnp.copy(leaf) for name, leaf in params.items()}
        zeros = {name: jnp.zeros(number.shape, number.dtype) for name, number in self._numbers.items()}
        return state | named(zeros, "sums") | guard.fresh(self.settings.guard, zeros)

    def _objective(
        self, params: Leaves, variables: Leaves, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Array, tuple[Leaves, Leaves]]:
        model = self.layout.model(params | variables, training=True)
        at_step(model, step)
        refresh(model)
        if self.settings.compute == "bfloat16":
            leaves = self.layout.leaves(model)
            model, batch = self.layout.model(leaves | narrowed(section(leaves, "params")), training=True), narrowed(batch)
        loss, numbers = widened(self.task.loss(model, batch, key))
        loss = loss + penalties(model)
        return loss, ({"loss": loss, **numbers, **solver_numbers(model)}, section(self.layout.leaves(model), "model"))

    def _gradient_of(
        self, params: Leaves, variables: Leaves, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Leaves, Leaves, Leaves]:
        """The gradient and the numbers to log, means over the parts of a batch, and the variables that its last part leaves."""
        parts = self.settings.accumulate

        def of_part(batch: Batch, key: Key[Array, ""]) -> tuple[Leaves, Leaves, Leaves]:
            (_, (numbers, changed)), gradient = jax.value_and_grad(self._objective, has_aux=True)(params, variables, batch, key, step)
            return gradient, numbers, changed

        if parts == 1:
            return of_part(batch, key)
        # Part i is the rows i, i + parts, ...: of every device some of its own.
        batch = {name: jnp.moveaxis(column.reshape(-1, parts, *column.shape[1:]), 1, 0) for name, column in batch.items()}

        def add(sums: tuple[Leaves, Leaves, Leaves], part: tuple[Batch, Array]) -> tuple[tuple[Leaves, Leaves, Leaves], None]:
            # Every part starts from the variables of the step before, which therefore take one step and not several.
            gradient, numbers, changed = of_part(part[0], jax.random.fold_in(key, part[1]))
            return (*jax.tree.map(jnp.add, sums[:2], (gradient, numbers)), changed), None

        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(of_part, jax.tree.map(lambda column: column[0], batch), key))
        (gradient, numbers, changed), _ = jax.lax.scan(add, nothing, (batch, jnp.arange(parts)))
        return *jax.tree.map(lambda total: total / parts, (gradient, numbers)), changed

    def _step(self, state: Leaves, batch: Batch) -> tuple[Leaves, Leaves]:
        """The next state, and what is told of the steps since the last row: means over the updates that were made, the guard's leaves."""
        step, params = state["step"], section(state, "params")
        key = random_key(self.seed, Stream.LOSS, step)
        gradient, numbers, variables = self._gradient(self.placement.gathered(params), section(state, "model"), batch, key, step)
        gradient = self.placement.spread(gradient)
        memory = restore(jax.eval_shape(self.transform.init, params), state, "optimizer")
        updates, memory = self.transform.update(gradient, memory, params)
        params = cast(Leaves, optax.apply_updates(params, updates))
        numbers |= {"gradient_norm": optax.tree.norm(gradient)}
        since = step % self.settings.log_every
        updated, guarded = guard.judge(self.settings.guard, self.patience, numbers, state, since == 0)
        new = {**params, **variables, **named(memory, "optimizer"), **self._average(state, params)}

        # The sums live in the state, so that a resumed run logs the same means, and logging costs no transfer per step.
        sums = {name: jnp.where(since == 0, 0, state[f"sums/{name}"]) + jnp.where(updated, value, 0) for name, value in numbers.items()}
        count = since + 1 - guarded["guard/since_row"]
        means = {name: value / count for name, value in sums.items()} | {"refused": guarded["guard/since_row"]}

        state = {
            "step": step + 1,
            **{name: jax.lax.select(updated, leaf, state[name]) for name, leaf in new.items()},
            **named(sums, "sums"),
            **guarded,
        }
        return state, means | guarded

    def retried(self, sound: Leaves, step: int, retries: int) -> Leaves:
        """The state that goes on at `step` from an earlier one that was sound: its batches are not seen again."""
        counts = {"step": np.int32(step), "guard/retries": np.int32(retries)}
        return {**sound, **{name: jax.device_put(count, self.abstract[name].sharding) for name, count in counts.items()}}

    def _average(self, state: Leaves, params: Leaves) -> Leaves:
        if self.settings.ema is None:
            return {}
        decay = jnp.minimum(self.settings.ema, (1 + state["step"]) / (10 + state["step"]))
        pairs = {name.replace("params/", "average/", 1): leaf for name, leaf in params.items()}
        return {name: (decay * state[name] + (1 - decay) * leaf).astype(leaf.dtype) for name, leaf in pairs.items()}

    @functools.cached_property
    def work(self) -> Work:
        """What a training step computes."""
        return work_of(self.step.trace(self.abstract, self.batch).jaxpr)

    def inspect(self, state: Leaves, records: Records) -> dict[str, float]:
        """What the model reports beside a validation: how healthy its equilibria of a few `records` are, and its certificates.

        All processes call it together.
        """
        numbers: dict[str, float] = {}
        if jax.tree.leaves(self.layout.diagnostics):
            batch = records.gather(np.arange(min(len(records), _EXAMINED)))
            numbers = {name: value.item() for name, value in jax.device_get(self.examine(state, batch)).items()}
        return numbers | certificate(self.layout.model(self.placement.fetched(state), training=False))

    def _examine(self, state: Leaves, batch: Batch) -> Leaves:
        model = self.layout.model(self.placement.gathered(state), training=False)
        examine(model)
        self.task.evaluate(model, batch, random_key(self.seed, Stream.EVALUATE))
        return solver_numbers(model, Examined)

    def _evaluate(self, state: Leaves, batch: Batch, index: Array) -> dict[str, Array]:
        """Values per example of one evaluation batch, with its `y` and `mask`; the same key for the same batch at every evaluation."""
        model = self.layout.model(self.placement.gathered(state), training=False)
        known = {name: batch[name] for name in ("y", "mask") if name in batch}
        batch = {name: column for name, column in batch.items() if name != "mask"}
        return self.task.evaluate(model, batch, random_key(self.seed, Stream.EVALUATE, index)) | known
