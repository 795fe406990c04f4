"""Flax (NNX) building blocks."""

from deqflow.nn.activations import Activation
from deqflow.nn.almost_orthogonal import AlmostOrthogonal
from deqflow.nn.attention import CausalAttention
from deqflow.nn.concatenation import Concatenation
from deqflow.nn.conv import Conv, conv_same
from deqflow.nn.dropout import VariationalDropout
from deqflow.nn.linear import Linear
from deqflow.nn.lipschitz import lipschitz_bound
from deqflow.nn.lipschitz_conv_net import LipschitzConvNet
from deqflow.nn.lipschitz_dense_net import LipschitzDenseNet
from deqflow.nn.lipschitz_mlp import LipschitzMLP
from deqflow.nn.mixed_norm import MixedNormLimit
from deqflow.nn.monotone import MonotoneConv, MonotoneDense, MonotoneOperator
from deqflow.nn.norm import GroupNorm
from deqflow.nn.norm_bound import conv_norm_bound, norm_bound
from deqflow.nn.norm_limit import NormLimit
from deqflow.nn.orthogonal import Orthogonal
from deqflow.nn.resample import Resample, windows
from deqflow.nn.residual import ResidualBlock
from deqflow.nn.spectral_norm import SpectralNorm, refresh
from deqflow.nn.transformer_block import TransformerBlock
from deqflow.nn.weight import Weight
from deqflow.nn.weight_norm import WeightNorm

__all__ = [
    "Activation",
    "AlmostOrthogonal",
    "CausalAttention",
    "Concatenation",
    "Conv",
    "GroupNorm",
    "Linear",
    "LipschitzConvNet",
    "LipschitzDenseNet",
    "LipschitzMLP",
    "MixedNormLimit",
    "MonotoneConv",
    "MonotoneDense",
    "MonotoneOperator",
    "NormLimit",
    "Orthogonal",
    "Resample",
    "ResidualBlock",
    "SpectralNorm",
    "TransformerBlock",
    "VariationalDropout",
    "Weight",
    "WeightNorm",
    "conv_norm_bound",
    "conv_same",
    "lipschitz_bound",
    "norm_bound",
    "refresh",
    "windows",
]
