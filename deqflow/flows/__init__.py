"""Normalizing flows: bijectors with log-determinants, and the densities they make.

Everything works on batches: a bijector maps `(batch, *event_shape)` from data to latent and back, with one log-determinant per sample.
"""

from deqflow.flows import masks
from deqflow.flows.actnorm import ActNorm
from deqflow.flows.arnoldi_quadrature import ArnoldiQuadrature
from deqflow.flows.autoregressive import MADE, MaskedAutoregressive
from deqflow.flows.base import Distribution, Mixture, Product, StandardNormal, StudentT, Uniform
from deqflow.flows.bijector import Bijector, DataDependent, Transformed
from deqflow.flows.chain import Chain
from deqflow.flows.conditioner import ResidualCNN, ResidualMLP, ResidualNetwork
from deqflow.flows.continuous import Continuous
from deqflow.flows.coupling import AdditiveCoupling, AffineCoupling, Coupling, SplineCoupling
from deqflow.flows.dequantize import Dequantize
from deqflow.flows.elementwise import Affine, LeakyReLU, Logit, Tanh
from deqflow.flows.equation import Equation, ImplicitFlow, Residual
from deqflow.flows.flow import Flow
from deqflow.flows.inverse import Inverse
from deqflow.flows.linear import InvertibleLinear
from deqflow.flows.lipschitz_bounds import lipschitz_bounds
from deqflow.flows.log_determinant import Estimate, Exact, LogDet, TraceEstimator, log_det
from deqflow.flows.multiscale import Multiscale
from deqflow.flows.permutation import Permutation
from deqflow.flows.power_series import PowerSeries, RussianRoulette
from deqflow.flows.repeat import Repeat
from deqflow.flows.spline import Spline
from deqflow.flows.squeeze import Squeeze
from deqflow.flows.to_numpyro import to_numpyro
from deqflow.flows.variational import reverse_kl

__all__ = [
    "MADE",
    "ActNorm",
    "AdditiveCoupling",
    "Affine",
    "AffineCoupling",
    "ArnoldiQuadrature",
    "Bijector",
    "Chain",
    "Continuous",
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
    "InvertibleLinear",
    "LeakyReLU",
    "LogDet",
    "Logit",
    "MaskedAutoregressive",
    "Mixture",
    "Multiscale",
    "Permutation",
    "PowerSeries",
    "Product",
    "Repeat",
    "Residual",
    "ResidualCNN",
    "ResidualMLP",
    "ResidualNetwork",
    "RussianRoulette",
    "Spline",
    "SplineCoupling",
    "Squeeze",
    "StandardNormal",
    "StudentT",
    "Tanh",
    "TraceEstimator",
    "Transformed",
    "Uniform",
    "lipschitz_bounds",
    "log_det",
    "masks",
    "reverse_kl",
    "to_numpyro",
]
