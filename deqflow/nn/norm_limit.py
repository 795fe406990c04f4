"""Kernels whose spectral norm is bounded by construction."""

from typing import Annotated

import jax.numpy as jnp
from flax import nnx
from jax import lax

from deqflow.nn.norm_bound import conv_norm_bound, norm_bound
from deqflow.nn.weight import Kernel, Weight
from deqflow.registry import Range, check_ranges


class NormLimit(Weight):
    """A matrix, or the kernel of a convolution, scaled so that an upper bound of its spectral norm does not exceed a limit.

        w = W min(1, limit / N(W)),   ‖W‖₂ <= N(W)

    N is the bound of Gram iteration: `norm_bound`, or `conv_norm_bound` for images of every size with zero padding. Where spectral
    normalisation by power iteration, `SpectralNorm`, keeps a vector that lags behind the weights and approaches the norm from below, this
    holds for every weight at once, keeps nothing, and its derivative is that of the whole map. What the bound leaves unused is a few
    parts in a thousand of a matrix, and up to 5 % of a 3 x 3 convolution on large images.

    Args:
      kernel: the first weights: a matrix `(inputs, outputs)`, or those of a convolution `(rows, columns, inputs, outputs)`.
      limit: of the spectral norm.

    Raises:
      ValueError: for a kernel of another rank or with a side that is even, or a limit that is not positive.

    Example:
      >>> weight = NormLimit(jnp.diag(jnp.array([4.0, 1.0])), limit=2.0)
      >>> print(jnp.diagonal(weight()).round(2))
      [2.  0.5]

    Delattre, Barthélemy, Araujo and Allauzen, "Efficient bound of Lipschitz constant for convolutional layers by Gram iteration", 2023.
    """

    def __init__(self, kernel: Kernel, *, limit: Annotated[float, Range(gt=0)] = 1.0) -> None:
        check_ranges(NormLimit.__init__, locals())
        if kernel.ndim not in (2, 4) or any(side % 2 == 0 for side in kernel.shape[:-2]):
            raise ValueError(f"NormLimit takes matrices and kernels of convolutions with odd sides, got a kernel of shape {kernel.shape}")
        self.limit = limit
        self.kernel = nnx.Param(kernel)

    def __call__(self) -> Kernel:
        kernel = self.kernel[...]
        # Gram iteration rounds, by some eps per product.
        if kernel.ndim == 2:
            bound = norm_bound(kernel, squarings=_SQUARINGS)
        else:
            bound = conv_norm_bound(kernel, angles=_ANGLES, squarings=_CONV_SQUARINGS)
        bound = bound * (1 + 64 * float(jnp.finfo(kernel.dtype).eps))
        return kernel * (self.limit / lax.max(bound, jnp.asarray(self.limit, bound.dtype)))


# Each squaring halves the logarithm of the slack: at 128 columns 128^(1/2048) leaves 2 parts in a thousand of the norm unused in a layer.
_SQUARINGS = 10
# A convolution has one matrix per angle: 16 per degree leave 4 % of a 3 x 3 kernel's norm unused, 8 would 15 %.
_ANGLES = 16
_CONV_SQUARINGS = 8
