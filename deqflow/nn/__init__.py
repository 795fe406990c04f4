"""Flax (NNX) building blocks."""

from deqflow.nn.attention import CausalAttention
from deqflow.nn.conv import Conv, conv_same
from deqflow.nn.norm import GroupNorm
from deqflow.nn.transformer_block import TransformerBlock

__all__ = ["CausalAttention", "Conv", "GroupNorm", "TransformerBlock", "conv_same"]
