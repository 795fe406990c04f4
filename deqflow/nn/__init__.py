"""Flax (NNX) building blocks."""

from deqflow.nn.conv import Conv, conv_same
from deqflow.nn.dropout import VariationalDropout
from deqflow.nn.linear import Linear
from deqflow.nn.norm import GroupNorm
from deqflow.nn.resample import Resample, windows
from deqflow.nn.residual import ResidualBlock
from deqflow.nn.spectral_norm import SpectralNorm, refresh
from deqflow.nn.weight import Weight
from deqflow.nn.weight_norm import WeightNorm

__all__ = [
    "Conv",
    "GroupNorm",
    "Linear",
    "Resample",
    "ResidualBlock",
    "SpectralNorm",
    "VariationalDropout",
    "Weight",
    "WeightNorm",
    "conv_same",
    "refresh",
    "windows",
]
