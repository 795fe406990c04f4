"""Flax (NNX) building blocks."""

from deqflow.nn.conv import Conv, conv_same
from deqflow.nn.norm import GroupNorm

__all__ = ["Conv", "GroupNorm", "conv_same"]
