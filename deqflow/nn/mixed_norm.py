"""Kernels whose norm from one vector norm to another is bounded by construction."""

from typing import Annotated, Literal

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from deqflow.nn.weight import Kernel, Weight
from deqflow.registry import Range, check_ranges

Norm = Literal["l1", "l2", "linf"]

DUAL: dict[Norm, Norm] = {"l1": "linf", "l2": "l2", "linf": "l1"}
"""The norm in which `|aᵀ x| <= ‖a‖ ‖x‖`."""


class MixedNormLimit(Weight):
    """A matrix scaled so that it takes no vector of length 1 in one norm to one longer than a limit in another.

        w = W min(1, limit / N(W)),   N(W) = min(‖(‖w_i‖_p*)_i‖_q, ‖(‖w_j‖_q)_j‖_p*) >= max_x ‖x W‖_q / ‖x‖_p

    with p the norm of the inputs, q that of the outputs, p* the dual of p, `w_i` the weights of output i and `w_j` those of input j. N is
    the norm itself if p is l1 or q is linf, and costs a pass over W; for l2 to l2 take `NormLimit`. From l2 to linf every output may have
    weights of length 1, where the spectral norm allows that to orthogonal ones alone. It is paid for by the last layer, from linf to l2: a
    network of such layers reaches its bound where every output hangs on few hidden features. Random weights of 8 use a tenth of it, those
    of `NormLimit` nine tenths.

    Layers whose norms meet multiply, and `lipschitz_bound` certifies a sequence that starts and ends in l2. It is in l2 that a residual
    flow's inverse is solved and the truncation of its log-determinant is bounded; that of linf or l1 to itself alone would let the inverse
    converge too, at a rate and with an error that are not those reported.

    Args:
      kernel: the first weights, `(inputs, outputs)`.
      domain: p.
      codomain: q.
      limit: of the norm.

    Raises:
      ValueError: for a convolution, for l2 to l2, or a limit that is not positive.

    Example:
      >>> weight = MixedNormLimit(jnp.array([[3.0, 1.0], [4.0, 0.0]]), domain="l2", codomain="linf")
      >>> [f"{length:.2f}" for length in jnp.linalg.norm(weight(), axis=0)]
      ['1.00', '0.20']

    Chen, Behrmann, Duvenaud and Jacobsen, "Residual flows for invertible generative modeling", 2019, on induced mixed norms.
    """

    def __init__(self, kernel: Kernel, *, domain: Norm, codomain: Norm, limit: Annotated[float, Range(gt=0)] = 1.0) -> None:
        check_ranges(MixedNormLimit.__init__, locals())
        if kernel.ndim != 2:
            raise ValueError(f"MixedNormLimit takes matrices, got a kernel of shape {kernel.shape}; NormLimit takes convolutions too")
        if domain == codomain == "l2":
            raise ValueError("MixedNormLimit from l2 to l2 would bound the Frobenius norm; NormLimit bounds the spectral norm")
        self.domain: Norm = domain
        self.codomain: Norm = codomain
        self.limit = limit
        self.kernel = nnx.Param(kernel)

    def __call__(self) -> Float[Array, "inputs outputs"]:
        kernel = self.kernel[...]
        # As in `norm_bound`: squares stay in the range of the type, and the scale needs no derivative.
        largest = lax.stop_gradient(jnp.max(jnp.abs(kernel), initial=0))
        scale = jnp.where(largest > 0, largest, 1)
        unit, dual = kernel / scale, DUAL[self.domain]
        by_outputs = _length(_length(unit, dual, 0), self.codomain, 0)
        by_inputs = _length(_length(unit, self.codomain, 1), dual, 0)
        bound = scale * jnp.minimum(by_outputs, by_inputs)
        bound = bound * (1 + 64 * float(jnp.finfo(kernel.dtype).eps))  # the sums round
        return kernel * (self.limit / lax.max(bound, jnp.asarray(self.limit, bound.dtype)))


def _length(x: Array, norm: Norm, axis: int) -> Array:
    if norm == "l1":
        return jnp.abs(x).sum(axis)
    if norm == "linf":
        return jnp.abs(x).max(axis)
    square = jnp.sum(x**2, axis)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
