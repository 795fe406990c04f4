"""Deep equilibrium layers and the cells they solve for."""

from deqflow.deq.cell import Cell
from deqflow.deq.conv_cell import ConvCell
from deqflow.deq.diagnostics import Diagnostics
from deqflow.deq.layer import DEQ
from deqflow.deq.transformer_cell import LoopedCell, RecurrentDepthCell, Segment, TransformerCell

__all__ = ["DEQ", "Cell", "ConvCell", "Diagnostics", "LoopedCell", "RecurrentDepthCell", "Segment", "TransformerCell"]
