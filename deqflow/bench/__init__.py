"""What a user's own model costs: the size of its training step, and each way to differentiate an equilibrium with its error."""

from deqflow.bench.compare import Record, memory, records
from deqflow.bench.methods import METHODS
from deqflow.bench.problem import Problem, of_cell
from deqflow.bench.sizing import Check, check

__all__ = ["METHODS", "Check", "Problem", "Record", "check", "memory", "of_cell", "records"]
