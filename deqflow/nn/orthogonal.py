"""Kernels that keep lengths by construction."""

from typing import Annotated

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deqflow.nn.weight import Kernel, Weight
from deqflow.registry import Range, check_ranges


class Orthogonal(Weight):
    """A matrix all of whose singular values are the limit, by the Cayley transform.

        w = limit [(I + A)⁻¹ (I - A); -2 V (I + A)⁻¹],   A = U - Uᵀ + VᵀV,   wᵀw = limit² I

    with U the square upper part of the parameters and V what is below, or of their transpose where there are more outputs than inputs. The
    symmetric part of `I + A` is at least I, so that the solve is well-posed whatever the parameters are. A limit on the norm, as by
    `NormLimit`, leaves it to training to use it in every direction; here nothing is left to use. The price is a solve, and that
    directions that should be forgotten are kept.

    Args:
      kernel: the parameters at the start, `(inputs, outputs)`; the matrix is not near to them.
      limit: every singular value.

    Raises:
      ValueError: for a convolution, or a limit that is not positive.

    Example:
      >>> w = Orthogonal(jnp.array([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]]), limit=2.0)()
      >>> print(jnp.linalg.svd(w, compute_uv=False).round(3))
      [2. 2.]

    Helfrich, Willmott and Ye, "Orthogonal recurrent neural networks with scaled Cayley transform", 2018; Trockman and Kolter,
    "Orthogonalizing convolutional layers with the Cayley transform", 2021, for the rectangular form.
    """

    def __init__(self, kernel: Kernel, *, limit: Annotated[float, Range(gt=0)] = 1.0) -> None:
        check_ranges(Orthogonal.__init__, locals())
        if kernel.ndim != 2:
            raise ValueError(f"Orthogonal takes matrices, got a kernel of shape {kernel.shape}; AlmostOrthogonal takes convolutions too")
        self.limit = limit
        self.kernel = nnx.Param(kernel)

    def __call__(self) -> Float[Array, "inputs outputs"]:
        kernel = self.kernel[...]
        inputs, outputs = kernel.shape
        return self._columns(kernel) if inputs >= outputs else self._columns(kernel.T).T

    def _columns(self, kernel: Float[Array, "n m"]) -> Float[Array, "n m"]:
        size = kernel.shape[1]
        upper, lower = kernel[:size], kernel[size:]
        skew = upper - upper.T + jnp.matmul(lower.T, lower, precision="highest")
        identity = jnp.eye(size, dtype=kernel.dtype)
        inverse = jnp.linalg.solve(identity + skew, identity)
        # (I + A)⁻¹ (I - A) = 2 (I + A)⁻¹ - I
        columns = jnp.concatenate([2 * inverse - identity, -2 * jnp.matmul(lower, inverse, precision="highest")])
        return self.limit / (1 + 64 * float(jnp.finfo(kernel.dtype).eps)) * columns  # the solve rounds
