"""Normalizing flows: bijectors with log-determinants, and the densities they make.

Everything works on batches: a bijector maps `(batch, *event_shape)` from data to latent and back, with one log-determinant per sample.
"""

from deqflow.flows import masks
from deqflow.flows.actnorm import ActNorm
from deqflow.flows.arnoldi_quadrature import ArnoldiQuadrature
from deqflow.flows.base import Distribution, StandardNormal
from deqflow.flows.bijector import Bijector, DataDependent, Transformed
from deqflow.flows.chain import Chain
from deqflow.flows.conditioner import ResidualMLP
from deqflow.flows.coupling import AdditiveCoupling, AffineCoupling, Coupling, SplineCoupling
from deqflow.flows.dequantize import Dequantize
from deqflow.flows.elementwise import Affine, Logit
from deqflow.flows.equation import Equation, ImplicitFlow, Residual
from deqflow.flows.flow import Flow
from deqflow.flows.inverse import Inverse
from deqflow.flows.log_determinant import Estimate, Exact, LogDet, TraceEstimator, log_det
from deqflow.flows.permutation import Permutation
from deqflow.flows.power_series import PowerSeries, RussianRoulette
from deqflow.flows.spline import Spline

__all__ = [
    "ActNorm",
    "AdditiveCoupling",
    "Affine",
    "AffineCoupling",
    "ArnoldiQuadrature",
    "Bijector",
    "Chain",
    "Coupling",
    "DataDependent",
    "Dequantize",
    "Distribution",
    "Equation",
    "Estimate",
    "Exact",
    "Flow",
    "ImplicitFlow",
    "Inverse",
    "LogDet",
    "Logit",
    "Permutation",
    "PowerSeries",
    "Residual",
    "ResidualMLP",
    "RussianRoulette",
    "Spline",
    "SplineCoupling",
    "StandardNormal",
    "TraceEstimator",
    "Transformed",
    "log_det",
    "masks",
]
