"""What the evaluation of a model that solves an equation reports of its solves."""

import jax
import numpy as np
from flax import nnx

from deqflow.deq.diagnostics import summary
from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Solver
from deqflow.implicit.status import Status


def solve_rows(stats: Stats) -> dict[str, jax.Array]:
    """Per example the relative `residual`, the number of `steps` and the `status`."""
    return {"residual": stats.relative_residual, "steps": stats.steps, "status": stats.status}


def batch_of_solves(rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The numbers that an equilibrium layer logs in training (`deqflow.deq.Diagnostics`), from the rows of `solve_rows`."""
    if "status" not in rows:
        return {}
    numbers = summary(rows["steps"], rows["residual"], rows["status"] >= Status.DIVERGED)
    return {f"solver_{name}": number for name, number in numbers.items()}


def summarize_solves(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """How the solves of a split went, from the rows of `solve_rows`; nothing where there are none.

    Returns:
      `residual_median` and `residual_max` (relative), the mean of `solver_steps`, and as fractions of all examples `solver_unconverged`,
      stopped above the tolerance for whatever reason, and among them `solver_failures`, without a usable solution.
    """
    if "status" not in rows:
        return {}
    residual = np.where(np.isnan(rows["residual"]), np.inf, rows["residual"])
    status = rows["status"]
    return {
        "residual_median": float(np.quantile(residual, 0.5, method="lower")),
        "residual_max": float(residual.max()),
        "solver_steps": float(rows["steps"].mean()),
        "solver_unconverged": float((status != Status.CONVERGED).mean()),
        "solver_failures": float((status >= Status.DIVERGED).mean()),
    }


def solver_tolerance(model: nnx.Module) -> float | None:
    """The relative tolerance of the model's solver in evaluation; `None` if it has none, or solvers that differ in it."""
    solvers = [getattr(module, "eval_solver", None) or getattr(module, "solver", None) for _, module in nnx.iter_modules(model)]
    found = {solver.rtol for solver in solvers if isinstance(solver, Solver)}
    return found.pop() or None if len(found) == 1 else None
