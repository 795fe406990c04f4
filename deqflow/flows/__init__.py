"""Normalizing flows: bijectors with log-determinants, and the densities they make.

Everything works on batches: a bijector maps `(batch, *event_shape)` from data to latent and back, with one log-determinant per sample.
"""

from deqflow.flows import masks
from deqflow.flows.actnorm import ActNorm
from deqflow.flows.base import Distribution, StandardNormal
from deqflow.flows.bijector import Bijector, DataDependent, Transformed
from deqflow.flows.chain import Chain
from deqflow.flows.conditioner import ResidualMLP
from deqflow.flows.coupling import AffineCoupling
from deqflow.flows.dequantize import Dequantize
from deqflow.flows.elementwise import Affine, Logit
from deqflow.flows.flow import Flow
from deqflow.flows.permutation import Permutation

__all__ = [
    "ActNorm",
    "Affine",
    "AffineCoupling",
    "Bijector",
    "Chain",
    "DataDependent",
    "Dequantize",
    "Distribution",
    "Flow",
    "Logit",
    "Permutation",
    "ResidualMLP",
    "StandardNormal",
    "Transformed",
    "masks",
]
