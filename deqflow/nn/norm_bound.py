"""Upper bounds of spectral norms, cheap and smooth enough to be computed once per solve."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact

from deqflow.nn.conv import Kernel

# The bound of a matrix with n columns is too large by a factor of at most n^(1/64): 7 % at 64.
_SQUARINGS = 5


def norm_bound(matrix: Inexact[Array, "*batch rows columns"], *, squarings: int = _SQUARINGS) -> Float[Array, "*batch"]:
    """An upper bound of the spectral norm, by Gram iteration.

        ‖M‖₂ <= ‖G‖_F^(1/2ˢ),   G = (MᴴM)^(2ˢ/2),   s = squarings

    Where power iteration approaches the norm from below, the Frobenius norm of a power of `MᴴM` approaches it from above, and
    doubles the digits with every squaring. True up to rounding, about 1e-5 in float32.

    Args:
      matrix: one or more matrices, real or complex.
      squarings: how often to square; n columns leave a factor of at most `n^(1/2ˢ⁺¹)`.

    Example:
      >>> print(f"{norm_bound(jnp.diag(jnp.array([3.0, 2.0, 1.0]))):.3f}")
      3.000

    Delattre, Barthélemy, Araujo and Allauzen, "Efficient bound of Lipschitz constant for convolutional layers by Gram iteration", 2023.
    """
    # Entries of order one: squares of others may leave the range of the type.
    # The result does not depend on the scale, which so needs no derivative.
    largest = lax.stop_gradient(jnp.max(jnp.abs(matrix), axis=(-2, -1), initial=0))
    scale = jnp.where(largest > 0, largest, 1)
    matrix = matrix / scale[..., None, None]
    log = jnp.zeros_like(scale)
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mT  # the smaller Gram matrix has the same norm
    for k in range(squarings):
        matrix, log = _unit(matrix, log, 2**k)
        matrix = jnp.matmul(jnp.conj(matrix.mT), matrix, precision="highest")
    return scale * jnp.exp(_unit(matrix, log, 2**squarings)[1])


def conv_norm_bound(kernel: Kernel, *, angles: int = 8, squarings: int = _SQUARINGS) -> Float[Array, ""]:
    """An upper bound of the spectral norm of `x -> conv_same(x, kernel)` on images of every size.

        ‖K‖₂ <= max_θ ‖K(θ)‖₂,   K(θ) = Σ_d K_d exp(i d·θ)

    Zero padding cuts a section out of the convolution on the infinite grid, whose norm is that maximum. It is taken over a grid of
    angles; between them a trigonometric polynomial of degree d, seen at N angles, rises by no more than the factor 1 / cos(π d / N), in
    either direction.

    Args:
      kernel: weights, with an odd number of rows and columns.
      angles: number of them in each direction, per degree; more are closer and cost as much more.
      squarings: of `norm_bound`.

    Example:
      >>> average = jnp.ones((3, 3, 1, 1)) / 9  # of norm 1 on large images
      >>> print(f"{conv_norm_bound(average):.3f}")
      1.172

    Ehlich and Zeller, "Schwankung von Polynomen zwischen Gitterpunkten", 1964; Pfister and Bresler, "Bounding multivariate
    trigonometric polynomials", 2019.
    """
    degrees = [side // 2 for side in kernel.shape[:2]]
    counts = [max(angles * degree, 1) for degree in degrees]
    # Real kernels repeat themselves at -θ, so half of the angles will do.
    symbol = jnp.fft.rfft2(kernel, s=counts, axes=(0, 1))
    rise = np.prod([1 / np.cos(np.pi * degree / count) for degree, count in zip(degrees, counts, strict=True)])
    return float(rise) * jnp.max(norm_bound(symbol, squarings=squarings))


def _unit(matrix: Array, log: Array, power: int) -> tuple[Array, Array]:
    """The matrix scaled to Frobenius norm 1, and the logarithm of that scale to the given root added to `log`."""
    square = jnp.sum(jnp.real(matrix * jnp.conj(matrix)), axis=(-2, -1))
    size = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), jnp.finfo(square.dtype).tiny)
    return matrix / size[..., None, None], log + jnp.log(size) / power
