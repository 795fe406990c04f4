"""The equilibrium layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Int, Key

from deqflow.deq.cell import State
from deqflow.deq.diagnostics import HealthDiagnostics, SolveDiagnostics, write
from deqflow.deq.training import Penalty, Training, TrainingStep, all_finite, unroll
from deqflow.implicit import Anderson, Gradient, Implicit, JacobianFree, Picard, Solution, Solver, Status, fixed_point
from deqflow.implicit.health import health
from deqflow.implicit.trees import as_floating, check_like, on_rows, rows, select


class DEQ(nnx.Module):
    """Deep equilibrium layer: its output is the fixed point of a cell.

        z = f(z, x)

    Depth is replaced by solving; memory does not grow with the solver's steps, and gradients come from the implicit function theorem.
    The layer's `diagnostics` hold what the trainer logs of the last solve, as `Diagnostics` variables.

    Args:
      cell: a `Cell`, or any module with `cell(z, x) -> z`; the latter starts from zeros like `x`, unless it has `initial` and `prepare`
        as a `Cell` does.
      solver: how to solve.
      gradient: how to differentiate.
      eval_solver: how to solve after `model.eval()`, until `model.train()`; the same if `None`.
      training: what is different in training: budgets, a start by unrolling, a penalty.

    Raises:
      ValueError: if the gradient does not work with the solver, or the cell normalises over the batch.

    Example:
      >>> from deqflow.deq import ConvCell
      >>> layer = DEQ(ConvCell(8, groups=4, rngs=nnx.Rngs(0)))
      >>> layer(jnp.ones((2, 6, 6, 8))).shape
      (2, 6, 6, 8)
      >>> print(layer.solve(jnp.ones((2, 6, 6, 8))).stats.converged)
      [ True  True]

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019.
    """

    def __init__(
        self,
        cell: Callable[..., State],
        solver: Solver = Anderson(),
        gradient: Gradient = Implicit(),
        *,
        eval_solver: Solver | None = None,
        training: Training = Training(),
    ) -> None:
        gradient.check(solver)
        gradient.check(eval_solver or solver)
        _refuse_batch_statistics(cell)
        self.cell = cell
        self.solver = solver
        self.gradient = gradient
        self.eval_solver = eval_solver
        self.training = training
        self.deterministic = False  # set by model.eval() and model.train()
        self.diagnostics = SolveDiagnostics()
        self.health: HealthDiagnostics | None = nnx.data(None)  # set by examine()
        self.step = TrainingStep(jnp.zeros((), jnp.int32)) if training.scheduled else None
        self.penalty = Penalty(jnp.zeros((), jnp.float32)) if training.jacobian else None

    def __call__(self, x: Any, *, key: Key[Array, ""] | None = None) -> State:
        """The equilibrium for the input `x`, a pytree of arrays with a leading batch axis."""
        return self.solve(x, key=key).value

    def solve(
        self,
        x: Any,
        *,
        key: Key[Array, ""] | None = None,
        z0: State | None = None,
        budget: Int[Array, ""] | int | None = None,
        trace: bool = False,
        states: tuple[int, ...] = (),
    ) -> Solution[Any]:
        """Solve for the equilibrium and keep the statistics.

        Args:
          x: input, a pytree of arrays with a leading batch axis. A sample that holds NaN or infinity is replaced by zeros before it
            reaches the cell, gets the status `INVALID_INPUT` and contributes nothing to any gradient.
          key: randomness for the cell, if it needs any; one draw serves the whole solve.
          z0: initial guess, for a warm start; the cell's `initial` by default, and for samples where `z0` is not finite.
          budget: at most this many steps; may be traced. By default what `training` says in training, and the solver's `max_steps`.
          trace: whether `stats.trace` shall hold the relative residual after every step.
          states: numbers of steps after which to look at the solve on its way: the solution's `states`, as in `fixed_point`.

        Returns:
          The equilibrium and per-sample statistics.

        Raises:
          ValueError: if the cell's output differs from its state in structure, shape or dtype, or a key is missing that training needs.
        """
        valid = all_finite(x)
        x = select(valid, x, jax.tree.map(jnp.zeros_like, x))
        initial = getattr(self.cell, "initial", lambda x: jax.tree.map(jnp.zeros_like, x))
        start = as_floating(initial(x), "the cell's initial state")
        if z0 is not None:
            z0 = as_floating(z0, "z0")
            check_like(z0, start, "z0 of the cell")
            start = select(all_finite(z0), z0, start)
        f = self._prepared(x, key)

        def step(z: State) -> State:
            out = f(z)
            check_like(out, z, f"the output of the cell {type(self.cell).__name__}")
            return out

        solution = self._solved(step, start, key, budget, trace, states)
        stats = solution.stats._replace(status=jnp.where(valid, solution.stats.status, jnp.int32(Status.INVALID_INPUT)))
        self.diagnostics.record(stats)
        if self.health is not None:
            at = lax.stop_gradient(solution.value)
            measured = health(on_rows(step, at, True, "the cell's output"), rows(at, True)[0], self.gradient)
            self.health.record(measured, ~stats.failed)
        if self.penalty is not None:
            self._penalise(self.penalty, step, solution.value, key, ~stats.failed)
        found = (solution.value, solution.states)
        value, states = select(valid, found, lax.stop_gradient(found))
        return Solution(value, stats, states=states)

    def _solved(
        self,
        f: Callable[[State], State],
        z0: State,
        key: Key[Array, ""] | None,
        budget: Int[Array, ""] | int | None,
        trace: bool,
        states: tuple[int, ...],
    ) -> Solution[Any]:
        given = budget is not None
        if not given and not self.deterministic and self.training.budget is not None:
            budget = self.training.budget(self._step, _stream(key, 0))

        def solve() -> Solution[Any]:
            solver = (self.deterministic and self.eval_solver) or self.solver
            return fixed_point(f, z0, solver=solver, gradient=self.gradient, budget=budget, trace=trace, states=states)

        first = self.training.pretraining
        if first is None or given or self.deterministic:
            return solve()
        one = Picard(atol=self.solver.atol, rtol=self.solver.rtol, max_steps=1)

        def unrolled() -> Solution[Any]:
            with jax.default_matmul_precision(self.solver.precision):
                z, sound = unroll(f, z0, first.depth)
            stats = fixed_point(f, lax.stop_gradient(z), solver=one, gradient=JacobianFree()).stats
            blank = jnp.full((self.solver.max_steps, *stats.steps.shape), jnp.nan, stats.residual.dtype) if trace else None
            count = first.depth + stats.steps
            status = jnp.where(sound, stats.status, jnp.int32(Status.DIVERGED))
            stats = stats._replace(status=status, steps=count, evaluations=count, trace=blank)
            return Solution(z, stats, states=(z,) * len(states))

        return lax.cond(self._step < first.steps, unrolled, solve)

    def _penalise(
        self,
        penalty: Penalty,
        f: Callable[[State], State],
        z: State,
        key: Key[Array, ""] | None,
        usable: Bool[Array, " batch"],
    ) -> None:
        if self.deterministic:
            return write((penalty, jnp.zeros((), jnp.float32)))
        assert self.training.jacobian is not None
        write((penalty, self.training.jacobian(f, z, self._step, _stream(key, 1), usable)), required=True)

    @property
    def _step(self) -> Int[Array, ""]:
        return jnp.zeros((), jnp.int32) if self.step is None else self.step[...]

    def _prepared(self, x: Any, key: Key[Array, ""] | None) -> Callable[[State], State]:
        prepare = getattr(self.cell, "prepare", None)
        return prepare(x, key) if prepare else lambda z: self.cell(z, x)


def examine(model: nnx.Module) -> None:
    """Let every equilibrium layer of `model` report from its next solve on how healthy its equilibria and their gradients are.

    The numbers are those of `HealthDiagnostics`, `Examined` variables of every layer's `health`. They cost some fifty products with the
    Jacobian and a backward solve beside every solve.

    Example:
      >>> layer = DEQ(lambda z, x: x - 0.5 * z, Picard(), JacobianFree())
      >>> examine(layer)
      >>> z = nnx.jit(lambda layer, x: layer(x))(layer, jnp.ones((2, 3)))
      >>> print(f"{layer.health.spectral_radius[...]:.3f}")
      0.500
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, DEQ):
            module.health = HealthDiagnostics(module.diagnostics.steps, backward=isinstance(module.gradient, Implicit))


def _refuse_batch_statistics(cell: Any) -> None:
    for path, _ in nnx.to_flat_state(nnx.state(cell, nnx.BatchStat)) if isinstance(cell, nnx.Module) else ():
        raise ValueError(
            f"the cell {type(cell).__name__} holds batch statistics at {'.'.join(map(str, path))}: with batch normalisation an equilibrium "
            "depends on the sample's neighbours, and the map changes with every step of a solve; normalise every sample by itself "
            "(deqflow.nn.GroupNorm, nnx.LayerNorm), or before the layer"
        )


def _stream(key: Key[Array, ""] | None, number: int) -> Key[Array, ""] | None:
    """Randomness for another use than the cell's."""
    return None if key is None else jax.random.fold_in(key, 0xDE0 + number)
