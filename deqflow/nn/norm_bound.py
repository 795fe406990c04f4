"""Upper bounds of spectral norms, cheap and smooth enough to be computed once per solve."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mT  # the smaller Gram matrix has the same norm
    return _bound(matrix, squarings)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _bound(matrix: Array, squarings: int) -> Array:
    return _iterate(matrix, squarings)[0]


@_bound.defjvp
def _(squarings: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Its derivative, in closed form: differentiating through the iteration takes two products for every one of it.

        N = (tr Gᑫ)^(1/2q),   q = 2ˢ,   G = MᴴM      =>      ∂N = N Re⟨M G^(q-1) / tr Gᑫ, ∂M⟩

    The power that is missing, by `μ = N²` and the series of `G⁻¹ = Σ_j (I - G/μ)ʲ / μ`: where Gᑫ is not negligible, G is close to μ.
    """
    bound, unit, power, ratio = _iterate(primals[0], squarings)
    mu = jnp.where(ratio > 0, ratio, 1)[..., None, None] ** 2
    gram = jnp.matmul(jnp.conj(unit.mT), unit, precision="highest") / mu
    square = rest = jnp.matmul(power, power, precision="highest")
    for _ in range(_series_length(squarings, gram.shape[-1], bound.dtype) - 1):
        rest = square + rest - jnp.matmul(gram, rest, precision="highest")
    slope = jnp.matmul(unit, rest / mu, precision="highest")
    return bound, ratio * jnp.sum(jnp.real(jnp.conj(slope) * tangents[0]), axis=(-2, -1))


def _series_length(squarings: int, columns: int, dtype: Any) -> int:
    """How many terms of the series leave an error of less than `eps^(2/3)`, relative to the largest eigenvalue's part."""
    q = 2**squarings
    eigenvalues = np.linspace(0, 1, 10_001)
    rest = 1 - eigenvalues * columns ** (-1 / q)
    terms = 1
    while np.max(eigenvalues ** (q - 1) * rest**terms) > float(jnp.finfo(dtype).eps) ** (2 / 3):
        terms += 1
    return terms


def _iterate(matrix: Array, squarings: int) -> tuple[Array, Array, Array, Array]:
    """The bound, the matrix and the power of its Gram matrix at Frobenius norm 1, and the bound of that matrix."""
    # Entries of order one: squares of others may leave the range of the type.
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1), initial=0)
    scale = jnp.where(largest > 0, largest, 1)
    unit, size = _unit(matrix / scale[..., None, None])
    power, log = unit, jnp.zeros_like(scale)
    for k in range(1, squarings + 1):
        power, norm = _unit(jnp.matmul(jnp.conj(power.mT), power, precision="highest"))
        log = log + jnp.log(norm) / 2**k
    return scale * size * jnp.exp(log), unit, power, jnp.exp(log)


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


def _unit(matrix: Array) -> tuple[Array, Array]:
    """The matrix scaled to Frobenius norm 1, and the norm."""
    square = jnp.sum(jnp.real(matrix * jnp.conj(matrix)), axis=(-2, -1))
    size = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), jnp.finfo(square.dtype).tiny)
    return matrix / size[..., None, None], size
