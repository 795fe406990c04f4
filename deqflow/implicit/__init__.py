"""Equations, solvers and derivatives: pure functions on pytrees."""

from deqflow.implicit.anderson import Anderson
from deqflow.implicit.bicgstab import BiCGStab
from deqflow.implicit.broyden import Broyden
from deqflow.implicit.dense import Dense
from deqflow.implicit.diagnose import diagnose
from deqflow.implicit.diagnosis import Diagnosis
from deqflow.implicit.differentiate import implicit_diff
from deqflow.implicit.equations import argmin, fixed_point, implicit_function, root
from deqflow.implicit.from_jaxopt import JaxoptAnderson, JaxoptBroyden, JaxoptFixedPoint
from deqflow.implicit.gmres import GMRES
from deqflow.implicit.gradient import Gradient, Implicit
from deqflow.implicit.linear import LinearSolver
from deqflow.implicit.newton import Newton
from deqflow.implicit.phantom import Phantom
from deqflow.implicit.picard import Picard
from deqflow.implicit.reversible import Reversible, ReversibleAdjoint
from deqflow.implicit.shine import Shine
from deqflow.implicit.solution import ConvergenceError, Solution, Stats
from deqflow.implicit.solver import Iterate, Solver
from deqflow.implicit.splitting import MonotoneInclusion
from deqflow.implicit.stationary import LinearFixedPoint, Neumann
from deqflow.implicit.status import Status
from deqflow.implicit.truncated import JacobianFree, TruncatedNeumann
from deqflow.implicit.unrolled import Unrolled

__all__ = [
    "GMRES",
    "Anderson",
    "BiCGStab",
    "Broyden",
    "ConvergenceError",
    "Dense",
    "Diagnosis",
    "Gradient",
    "Implicit",
    "Iterate",
    "JacobianFree",
    "JaxoptAnderson",
    "JaxoptBroyden",
    "JaxoptFixedPoint",
    "LinearFixedPoint",
    "LinearSolver",
    "MonotoneInclusion",
    "Neumann",
    "Newton",
    "Phantom",
    "Picard",
    "Reversible",
    "ReversibleAdjoint",
    "Shine",
    "Solution",
    "Solver",
    "Stats",
    "Status",
    "TruncatedNeumann",
    "Unrolled",
    "argmin",
    "diagnose",
    "fixed_point",
    "implicit_diff",
    "implicit_function",
    "root",
]
