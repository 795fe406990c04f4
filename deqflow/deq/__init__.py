"""Deep equilibrium layers and the cells they solve for."""

from deqflow.deq.cell import Cell
from deqflow.deq.conv_cell import ConvCell
from deqflow.deq.diagnostics import Diagnostics
from deqflow.deq.layer import DEQ
from deqflow.deq.training import (
    JacobianPenalty,
    Penalty,
    Pretraining,
    StepBudget,
    Training,
    TrainingStep,
    at_step,
    jacobian_norm,
    penalties,
)

__all__ = [
    "DEQ",
    "Cell",
    "ConvCell",
    "Diagnostics",
    "JacobianPenalty",
    "Penalty",
    "Pretraining",
    "StepBudget",
    "Training",
    "TrainingStep",
    "at_step",
    "jacobian_norm",
    "penalties",
]
