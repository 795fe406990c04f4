"""What makes equilibrium layers train: budgets, a start by unrolling, and a penalty on the Jacobian."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from deqflow.deq.cell import State
from deqflow.deq.diagnostics import Diagnostics
from deqflow.implicit.trees import finite, select
from deqflow.registry import Range, check_ranges


class TrainingStep(nnx.Variable):
    """The number of the training step, an int32 scalar that the trainer writes before it calls the model: see `at_step`."""


class Penalty(Diagnostics):
    """A float32 scalar that a layer asks to be added to the loss: see `penalties`. Unlike other diagnostics it is differentiated."""


def at_step(model: nnx.Module, step: Int[Array, ""] | int) -> None:
    """Tell every equilibrium layer of `model` the number of the training step, on which schedules depend."""
    for _, variable in nnx.to_flat_state(nnx.state(model, TrainingStep)):
        variable[...] = jnp.asarray(step, jnp.int32)


def penalties(model: nnx.Module) -> Float[Array, ""]:
    """The sum of what the layers of `model` asked in their last call to be added to the loss; nothing after a call in evaluation.

    Example:
      >>> from deqflow.deq import DEQ, ConvCell, JacobianPenalty, Training
      >>> cell = ConvCell(8, groups=4, rngs=nnx.Rngs(0))
      >>> layer = DEQ(cell, training=Training(jacobian=JacobianPenalty(weight=0.1)))
      >>> def loss(layer, x, key):
      ...     return layer(x, key=key).mean() + penalties(layer)
      >>> bool(loss(layer, jnp.ones((2, 4, 4, 8)), jax.random.key(0)) > layer(jnp.ones((2, 4, 4, 8)), key=jax.random.key(0)).mean())
      True
    """
    found = (jnp.sum(variable[...]) for _, variable in nnx.to_flat_state(nnx.state(model, Penalty)))
    return sum(found, jnp.zeros((), jnp.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBudget:
    """How many solver steps a training step may take.

        budget(t) = first + (last - first) min(1, t / over)

    Args:
      first: solver steps at the first training step.
      last: solver steps after `over` training steps; the solver's `max_steps` caps it.
      over: number of training steps over which the budget grows.
      random: draw the budget anew at each training step, uniformly from `first` to what the schedule allows, so that the layer learns to
        be read at any number of steps.

    Geiping et al., "Scaling up test-time compute with latent reasoning: a recurrent depth approach", 2025, on randomised budgets.
    """

    first: Annotated[int, Range(ge=1)]
    last: Annotated[int, Range(ge=1)]
    over: Annotated[int, Range(ge=0)] = 0
    random: bool = False

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))
        if self.random and self.first > self.last:
            raise ValueError(f"a random budget is drawn from first to last, got first={self.first} and last={self.last}")

    def __call__(self, step: Int[Array, ""], key: Key[Array, ""] | None) -> Int[Array, ""]:
        """The budget of a training step."""
        done = jnp.minimum(step / self.over, 1) if self.over else 1
        budget = jnp.round(self.first + (self.last - self.first) * done).astype(jnp.int32)
        return jax.random.randint(required(key, "a random step budget"), (), self.first, budget + 1) if self.random else budget


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The first training steps, by backpropagation through a few steps of plain iteration.

        z_{k+1} = f(z_k),   k < depth

    Its tape, `depth` states, is part of the memory of every later training step too: which of the two is done is decided at run time. It
    gives way to an explicit `budget` of a solve.

    Args:
      steps: number of training steps.
      depth: steps of plain iteration.

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019.
    """

    steps: Annotated[int, Range(ge=1)]
    depth: Annotated[int, Range(ge=1)]

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class JacobianPenalty:
    """A penalty on the squared Frobenius norm of the cell's Jacobian at the equilibrium, by Hutchinson's estimator.

        weight ‖∂f/∂z‖_F² / n  =  weight E ‖εᵀ ∂f/∂z‖² / n,   ε ~ N(0, I)

    per sample with state dimension n, the mean over the batch. A smaller Jacobian needs fewer solver steps, forward and backward.

    Args:
      weight: of the penalty, added to the loss.
      over: number of training steps over which the weight grows from zero.
      fraction: of the training steps that compute the penalty, chosen at random; it is divided by it, so that its mean does not change.
      probes: random vectors per sample.

    Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization", 2021.
    """

    weight: Annotated[float, Range(gt=0)]
    over: Annotated[int, Range(ge=0)] = 0
    fraction: Annotated[float, Range(gt=0, le=1)] = 1.0
    probes: Annotated[int, Range(ge=1)] = 1

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    def __call__(
        self,
        f: Callable[[State], State],
        z: State,
        step: Int[Array, ""],
        key: Key[Array, ""] | None,
        usable: Bool[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        """The penalty of the map `f` at `z`, which is held constant, over the `usable` samples."""
        choice, probe = jax.random.split(required(key, "a Jacobian penalty"))
        z = lax.stop_gradient(z)
        weight = self.weight / self.fraction * (jnp.minimum(step / self.over, 1) if self.over else 1)
        estimate = functools.partial(jacobian_norm, f, z, probe, self.probes, usable)
        if self.fraction < 1:
            chosen = jax.random.uniform(choice) < self.fraction
            return weight * lax.cond(chosen, estimate, lambda: jnp.zeros((), jnp.float32))
        return weight * estimate()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What an equilibrium layer does differently in training; nothing, as it stands.

    Schedules count the training steps that `at_step` tells, as the trainer does; without it, every step is the first.

    Args:
      budget: schedule of the number of solver steps.
      pretraining: the first training steps by unrolling.
      jacobian: a penalty that the layer asks to be added to the loss, as `penalties` reads it.
    """

    budget: StepBudget | None = None
    pretraining: Pretraining | None = None
    jacobian: JacobianPenalty | None = None

    @property
    def scheduled(self) -> bool:
        """Whether anything depends on the number of the training step."""
        return self.budget is not None or self.pretraining is not None or (self.jacobian is not None and self.jacobian.over > 0)


def jacobian_norm(
    f: Callable[[State], State], z: State, key: Key[Array, ""], probes: int = 1, usable: Bool[Array, " batch"] | None = None
) -> Float[Array, ""]:
    """Hutchinson's estimate of `‖∂f/∂z‖_F² / n`, the mean over the batch.

    Args:
      f: a map of states that treats every sample by itself.
      z: where, a pytree of arrays with a leading batch axis.
      key: of the random vectors.
      probes: how many of them per sample.
      usable: the samples that count; all of them if `None`.

    Example:
      >>> jacobian_norm(lambda z: 0.5 * z, jnp.ones((64, 100)), jax.random.key(0), probes=4).round(2)
      Array(0.25, dtype=float32)
    """
    leaves, structure = jax.tree.flatten(z)
    batch = leaves[0].shape[0]
    usable = jnp.ones(batch, bool) if usable is None else usable
    size = sum(leaf.size for leaf in leaves) // max(batch, 1)
    nothing = jax.tree.map(jnp.zeros_like, z)
    _, pull = jax.vjp(f, z)

    def squares(key: Key[Array, ""]) -> Float[Array, ""]:
        keys = jax.random.split(key, len(leaves))
        # Added to zeros of the state's own, so that it is sharded as that is.
        noise = [jnp.zeros_like(leaf) + jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        (pulled,) = pull(select(usable, jax.tree.unflatten(structure, noise), nothing))
        pulled = select(usable, pulled, nothing)
        return sum((jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(pulled)), jnp.zeros((), jnp.float32))

    return jnp.mean(lax.map(squares, jax.random.split(key, probes))) / (size * jnp.maximum(jnp.sum(usable), 1))


def unroll(f: Callable[[State], State], z0: State, depth: int) -> tuple[State, Bool[Array, " batch"]]:
    """`depth` applications of `f`, to be differentiated, and which samples they leave finite; the others stay at `z0`, a constant."""
    step = jax.checkpoint(lambda z, _: (f(z), None))
    end, _ = lax.scan(step, lax.stop_gradient(z0), length=depth)
    sound = lax.stop_gradient(all_finite(end))
    z, _ = lax.scan(lambda z, _: (select(sound, step(z, None)[0], z), None), z0, length=depth)
    return z, sound


def all_finite(tree: Any) -> Bool[Array, " batch"]:
    """Which samples hold finite numbers only."""
    return jnp.all(jnp.stack([finite(leaf) for leaf in jax.tree.leaves(tree)]), axis=0)


def required(key: Any, what: str) -> Any:
    """`key`, or an error if it is missing."""
    if key is None:
        raise ValueError(f"{what} needs a key in training: call the layer with key=..., or model.eval() first")
    return key
