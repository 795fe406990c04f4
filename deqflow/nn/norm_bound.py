"""Upper bounds of spectral norms, cheap and smooth enough to be computed once per solve."""

import functools
from typing import Any

import jax
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
    if matrix.shape[-2] < matrix.shape[-1]:
        matrix = matrix.mT  # the smaller Gram matrix has the same norm
    return _bound(matrix, squarings)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _bound(matrix: Array, squarings: int) -> Array:
    return _iterate(matrix, squarings)[0]


@_bound.defjvp
def _(squarings: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Its derivative, in closed form: differentiating through the iteration takes two products for every one of it.

        N = (tr Gᑫ)^(1/2q),   q = 2ˢ,   G = MᴴM      =>      ∂N = N Re⟨M B^(q-1) / μ, ∂M⟩,   B = G / μ,   μ = N²

    Where Bᑫ is not negligible, B is close to I: few terms of `B^(q-1) = Σ_j (I - B)ʲ Bᑫ` give the power that is missing.
    """
    bound, unit, power, ratio = _iterate(primals[0], squarings)
    mu = jnp.square(ratio)[..., None, None]
    mu = jnp.where(mu > 0, mu, 1)
    product = functools.partial(jnp.matmul, precision="highest")
    gram = product(jnp.conj(unit.mT), unit) / mu
    if (terms := _series_length(squarings, gram.shape[-1], bound.dtype)) is not None:
        whole = rest = product(power, power)
        for _ in range(terms - 1):
            rest = whole + rest - product(gram, rest)
    else:
        rest = power = gram
        for _ in range(squarings - 1):
            power = product(power, power)
            rest = product(rest, power)
    slope = product(unit, rest / mu)
    return bound, ratio * jnp.sum(jnp.real(jnp.conj(slope) * tangents[0]), axis=(-2, -1))


def _series_length(squarings: int, columns: int, dtype: Any) -> int | None:
    """How many terms leave an error of less than `eps^(2/3)` of the largest eigenvalue's part; `None` for more than squarings."""
    q = 2**squarings
    eigenvalues = np.linspace(0, 1, 10_001)
    errors = eigenvalues ** (q - 1) * (1 - eigenvalues * columns ** (-1 / q)) ** np.arange(1, squarings + 1)[:, None]
    enough = errors.max(1) < float(jnp.finfo(dtype).eps) ** (2 / 3)
    return int(enough.argmax()) + 1 if enough.any() else None


def _iterate(matrix: Array, squarings: int) -> tuple[Array, Array, Array, Array]:
    """The bound, the matrix and the power of its Gram matrix at Frobenius norm 1, and the bound of that matrix."""
    # Entries of order one: squares of others may leave the range of the type.
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1), initial=0)
    scale = jnp.where(largest > 0, largest, 1)
    unit, size = _unit(matrix / scale[..., None, None])

    def square(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        power, log = carry
        power, norm = _unit(jnp.matmul(jnp.conj(power.mT), power, precision="highest"))
        return power, log + jnp.log(norm) * 0.5**k

    # A loop is compiled faster than its steps one after the other; the first makes a square matrix.
    power, log = lax.fori_loop(2, squarings + 1, square, square(jnp.ones((), size.dtype), (unit, jnp.zeros_like(scale))))
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
