"""Benchmarks of a user's own model: what each way to differentiate an equilibrium costs, and how wrong it is."""

from deqflow.bench.compare import Record, memory, records
from deqflow.bench.methods import METHODS
from deqflow.bench.problem import Problem, of_cell

__all__ = ["METHODS", "Problem", "Record", "memory", "of_cell", "records"]
