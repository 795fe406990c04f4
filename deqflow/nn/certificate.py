"""Certified spectral norms of the weights in use, in NumPy's float64."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from deqflow.nn.mixed_norm import DUAL, Norm

# Angles per degree of the symbol. Every second and fourth of them are looked at alone too: they are what `NormLimit` and
# `conv_norm_bound` see, so that no certificate is above the bound by which a kernel was divided.
_ANGLES = 32
_SUBSETS = (1, 2, 4)
# Steps towards the weights that make the row sums equal; any weights give a bound.
_BALANCINGS = 100
_ORDERS: dict[Norm, float] = {"l1": 1, "l2": 2, "linf": math.inf}


def spectral_norm(matrix: Any) -> float:
    """The largest singular value of a matrix in float64, and what rounding the entries to the type they come in may add to it."""
    values, margin = _host(matrix)
    return float(np.linalg.norm(values, 2) * margin) if np.isfinite(values).all() else math.inf


def mixed_norm(matrix: Any, domain: Norm, codomain: Norm) -> float:
    """The bound N of `MixedNormLimit` in float64, with the same margin."""
    values, margin = _host(matrix)
    dual, outer = _ORDERS[DUAL[domain]], _ORDERS[codomain]
    by_outputs = np.linalg.norm(np.linalg.norm(values, dual, axis=0), outer)
    by_inputs = np.linalg.norm(np.linalg.norm(values, outer, axis=1), dual)
    return float(min(by_outputs, by_inputs) * margin) if np.isfinite(values).all() else math.inf


def conv_spectral_norm(kernel: Any) -> float:
    """An upper bound of the norm of `x -> conv_same(x, kernel)` on images of every size, the smaller of two.

    The one is that of `conv_norm_bound` with exact singular values on a finer grid, 1 % above the norm on large images for a 3 x 3
    kernel. The other is Schur's test on the autocorrelation R of the kernel, which is exact for those of `AlmostOrthogonal`:

        ‖K‖² <= max_i Σ_j S_ij w_j / w_i,   S_ij = Σ_d |R_ij(d)|,   for any w > 0

    Both are of the convolution on the infinite grid. Zero padding cuts a section out of it and a stride leaves pixels away, neither of
    which adds to a norm.
    """
    values, margin = _host(kernel)
    if not np.isfinite(values).all():
        return math.inf
    return float(min(_on_a_grid(values), _by_rows(values)) * margin)


def _host(weights: Any) -> tuple[np.ndarray, float]:
    """The numbers in float64, and 1 plus what rounding them may add, relative to their norm."""
    if isinstance(weights, Tracer):
        raise TypeError("a Lipschitz bound is computed on the host, from numbers: call it outside of jit")
    values = np.asarray(weights)
    return values.astype(np.float64), 1 + 4 * float(jnp.finfo(values.dtype).eps)


def _on_a_grid(kernel: np.ndarray) -> float:
    degrees = [side // 2 for side in kernel.shape[:2]]
    symbol = np.fft.rfft2(kernel, s=[max(_ANGLES * degree, 1) for degree in degrees], axes=(0, 1))
    norms = np.linalg.norm(symbol, 2, axis=(-2, -1))
    rises = [math.prod(1 / math.cos(math.pi * every / _ANGLES) for degree in degrees if degree) for every in _SUBSETS]
    return min(rise * norms[::every, ::every].max() for every, rise in zip(_SUBSETS, rises, strict=True))


def _by_rows(kernel: np.ndarray) -> float:
    if kernel.shape[2] > kernel.shape[3]:
        kernel = kernel.swapaxes(2, 3)  # the transpose, turned round, has the same norm and fewer rows
    symbol = np.fft.fft2(kernel, s=[2 * side - 1 for side in kernel.shape[:2]], axes=(0, 1))
    sums = np.abs(np.fft.ifft2(symbol @ np.conj(symbol.swapaxes(2, 3)), axes=(0, 1))).sum((0, 1))
    best, weights = math.inf, np.ones(len(sums))
    for _ in range(_BALANCINGS):
        image = sums @ weights
        best = min(best, (image / weights).max())
        weights = np.maximum(image / max(image.max(), np.finfo(float).tiny), 1e-9)
    return math.sqrt(best)
