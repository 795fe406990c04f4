"""Equations, solvers and derivatives: pure functions on pytrees."""

from deqflow.implicit.anderson import Anderson
from deqflow.implicit.equations import fixed_point, implicit_diff
from deqflow.implicit.gmres import GMRES
from deqflow.implicit.gradient import Gradient, Implicit
from deqflow.implicit.linear import LinearSolver
from deqflow.implicit.picard import Picard
from deqflow.implicit.solution import ConvergenceError, Solution, Stats
from deqflow.implicit.solver import Iterate, Solver
from deqflow.implicit.status import Status

__all__ = [
    "GMRES",
    "Anderson",
    "ConvergenceError",
    "Gradient",
    "Implicit",
    "Iterate",
    "LinearSolver",
    "Picard",
    "Solution",
    "Solver",
    "Stats",
    "Status",
    "fixed_point",
    "implicit_diff",
]
