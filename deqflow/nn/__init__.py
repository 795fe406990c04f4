"""Flax (NNX) building blocks."""

from deqflow.nn.conv import Conv, conv_same
from deqflow.nn.monotone import MonotoneConv, MonotoneDense, MonotoneOperator
from deqflow.nn.norm import GroupNorm
from deqflow.nn.norm_bound import conv_norm_bound, norm_bound

__all__ = ["Conv", "GroupNorm", "MonotoneConv", "MonotoneDense", "MonotoneOperator", "conv_norm_bound", "conv_same", "norm_bound"]
