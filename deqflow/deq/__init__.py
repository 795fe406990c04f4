"""Deep equilibrium layers and the cells they solve for."""

from deqflow.deq.cell import Cell
from deqflow.deq.conv_cell import ConvCell
from deqflow.deq.diagnostics import Diagnostics, Examined
from deqflow.deq.layer import DEQ, examine
from deqflow.deq.mlp_cell import MLPCell
from deqflow.deq.monotone_cell import MonotoneCell, MonotoneConvCell, MonotoneDenseCell
from deqflow.deq.multiscale_cell import MultiscaleCell
from deqflow.deq.residual_conv_cell import ResidualConvCell
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
from deqflow.deq.transformer_cell import AttentionInjectionCell, Injection, LoopedCell, RecurrentDepthCell, Segment, TransformerCell

__all__ = [
    "DEQ",
    "AttentionInjectionCell",
    "Cell",
    "ConvCell",
    "Diagnostics",
    "Examined",
    "Injection",
    "JacobianPenalty",
    "LoopedCell",
    "MLPCell",
    "MonotoneCell",
    "MonotoneConvCell",
    "MonotoneDenseCell",
    "MultiscaleCell",
    "Penalty",
    "Pretraining",
    "RecurrentDepthCell",
    "ResidualConvCell",
    "Segment",
    "StepBudget",
    "Training",
    "TrainingStep",
    "TransformerCell",
    "at_step",
    "examine",
    "jacobian_norm",
    "penalties",
]
