"""Eigenvalues and singular values of the Jacobian of a map, per sample: measured in one compiled program, read off on the host."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deqflow.implicit.arnoldi import Krylov, arnoldi, golub_kahan
from deqflow.implicit.dense import matrices
from deqflow.implicit.trees import Map, Vectors, combine, dot, norm

# Bidiagonalisation of the inverse finds its largest singular value, which mostly stands out, in a few steps of two linear solves each:
# within 1 % for Gaussian and symmetric, 8 % for orthogonal matrices of 300 dimensions.
_INVERSE_STEPS = 4

# A reference solution whose relative error may be larger than this says nothing about that of another one.
_USABLE = 0.1


class Measured(NamedTuple):
    """A Jacobian J, or what stands in for it where it is too large.

    Attributes:
      krylov: Arnoldi's basis for J.
      jacobian: J itself, or `None`.
      estimates: `None`, or `Estimates`.
    """

    krylov: Krylov
    jacobian: Float[Array, "batch n n"] | None
    estimates: "Estimates | None"


class Estimates(NamedTuple):
    """What Krylov spaces say of a Jacobian J.

    Attributes:
      jacobian: bidiagonal; J restricted to a subspace.
      matrix: the same of `I - J`.
      dimension: of the latter subspace.
      image: `‖(I - J) x‖₂` for a unit vector x that makes it small.
      reference: `(I - J)⁻ᵀ g`.
      unsolved: its residual.
    """

    jacobian: Float[Array, "batch m m"]
    matrix: Float[Array, "batch m m"]
    dimension: Int[Array, " batch"]
    image: Float[Array, " batch"]
    reference: Vectors
    unsolved: Float[Array, " batch"]


class Spectrum(NamedTuple):
    """What the eigenvalues and singular values of J and `I - J` say; NaN for a sample whose Jacobian is not finite.

    Attributes:
      radius: the spectral radius of J.
      radius_residual: the residual of that eigenvalue, for an eigenvector of unit length.
      norm: `‖J‖₂`.
      smallest: singular value of `I - J`.
      largest: singular value of `I - J`.
      reference: `(I - J)⁻ᵀ g`; NaN where it could not be had.
    """

    radius: Float[np.ndarray, " batch"]
    radius_residual: Float[np.ndarray, " batch"]
    norm: Float[np.ndarray, " batch"]
    smallest: Float[np.ndarray, " batch"]
    largest: Float[np.ndarray, " batch"]
    reference: Float[np.ndarray, "batch n"]


def measure(product: Map, transpose: Map, g: Vectors, start: Vectors, steps: int) -> Measured:
    """Apply J and its transpose as often as `spectrum` needs.

    Args:
      product: products with J.
      transpose: products with its transpose.
      g: right-hand sides, in at least float32.
      start: where the Krylov spaces begin.
      steps: their dimension. A larger J is not formed.
    """
    n = start.shape[1]
    return Measured(
        krylov=arnoldi(product, start, min(steps, n)),
        jacobian=matrices(product, start) if n <= steps else None,
        estimates=_estimate(product, transpose, g, start, steps) if n > steps else None,
    )


def spectrum(m: Measured, g: Float[np.ndarray, "batch n"], epsilon: float) -> Spectrum:
    """Read eigenvalues and singular values off what `measure` found, on the host in float64.

    Args:
      m: as NumPy arrays.
      g: right-hand sides.
      epsilon: of the type in which `measure` computed; a singular value this far below the largest is none.
    """
    found = [m.krylov.hessenberg, m.jacobian] if m.estimates is None else [m.krylov.hessenberg, m.estimates.jacobian, m.estimates.matrix]
    finite = np.all([np.isfinite(a).all(axis=(1, 2)) for a in found], axis=0)
    hessenberg, *found = (np.where(finite[:, None, None], a, 0).astype(float) for a in found)

    steps = hessenberg.shape[2]
    values, vectors = np.linalg.eig(hessenberg[:, :steps])
    top = np.argmax(np.abs(values), axis=1)[:, None]
    radius = np.take_along_axis(np.abs(values), top, 1)[:, 0]
    # A V y - λ V y = h v y_m, for an eigenvector y of the square block and the entry h below it.
    residual = np.abs(hessenberg[:, steps, steps - 1] * np.take_along_axis(vectors[:, -1], top, 1)[:, 0])

    rest = _of_jacobian(found[0], g, epsilon) if m.estimates is None else _of_estimates(found[0], found[1], m.estimates)
    known = lambda a: np.where(finite.reshape(-1, *[1] * (a.ndim - 1)), a, np.nan)  # noqa: E731
    return Spectrum(*map(known, (radius, residual, *rest)))


def _of_jacobian(J: np.ndarray, g: np.ndarray, epsilon: float) -> tuple[np.ndarray, ...]:
    """The last four of `Spectrum`."""
    u, s, v = np.linalg.svd(np.eye(J.shape[1]) - J)
    regular = np.where(s > epsilon * s[:, :1], s, np.nan)
    reference = np.einsum("bij,bj->bi", u, np.einsum("bij,bj->bi", v, g) / regular)
    return np.linalg.svd(J, compute_uv=False)[:, 0], s[:, -1], s[:, 0], reference


def _of_estimates(jacobian: np.ndarray, matrix: np.ndarray, e: Estimates) -> tuple[np.ndarray, ...]:
    """The last four of `Spectrum`."""
    singular = [np.linalg.svd(b[:d, :d], compute_uv=False) for b, d in zip(matrix, e.dimension, strict=True)]
    smallest = np.fmin(np.array([s[-1] for s in singular]), e.image)
    reference = np.asarray(e.reference, float)
    # The residual of a solution is at least its error times the smallest singular value.
    usable = e.unsolved <= _USABLE * smallest * np.linalg.norm(reference, axis=1)
    largest = np.array([s[0] for s in singular])
    return np.linalg.svd(jacobian, compute_uv=False)[:, 0], smallest, largest, np.where(usable[:, None], reference, np.nan)


def _estimate(product: Map, transpose: Map, g: Vectors, start: Vectors, steps: int) -> Estimates:
    """What Krylov spaces say of a Jacobian that is too large to be formed."""
    minus, minus_transpose = (lambda v: v - product(v)), (lambda v: v - transpose(v))
    # The image of x is an upper bound whatever x is, so these solves may be coarse.
    inverse = golub_kahan(
        lambda v: _solve(minus, minus_transpose, v, 1e-2, 10 * steps),
        lambda v: _solve(minus_transpose, minus, v, 1e-2, 10 * steps),
        start,
        min(steps, _INVERSE_STEPS),
    )
    x = combine(jnp.linalg.svd(inverse.matrix)[0][:, :, 0], inverse.left)
    reference = _solve(minus_transpose, minus, g, 10 * float(jnp.finfo(g.dtype).eps), 20 * steps)
    whole = golub_kahan(minus, minus_transpose, start, steps)
    return Estimates(
        jacobian=golub_kahan(product, transpose, start, steps).matrix,
        matrix=whole.matrix,
        dimension=whole.dimension,
        image=norm(minus(x)) / norm(x),
        reference=reference,
        unsolved=norm(g - minus_transpose(reference)),
    )


class _Descent(NamedTuple):
    taken: Int[Array, ""]
    x: Vectors
    residual: Vectors  # b - A x
    gradient: Vectors  # Aᵀ (b - A x)
    direction: Vectors


def _solve(apply: Map, transpose: Map, b: Vectors, rtol: float, max_steps: int) -> Vectors:
    """The solution of `A x = b` by conjugate gradients on `AᵀA x = Aᵀb`, to a relative residual, if it gets there.

    It takes more products than GMRES where that converges, but it keeps no basis, and converges for every non-singular A, the nearly
    singular and indefinite ones included, whose diagnosis is what matters.

    Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
    """

    def running(d: _Descent) -> Bool[Array, " batch"]:
        return (norm(d.residual) > rtol * norm(b)) & (norm(d.gradient) > 0)

    def descend(d: _Descent) -> _Descent:
        image = apply(d.direction)
        slope, curvature = dot(d.gradient, d.gradient), dot(image, image)
        length = jnp.where(running(d) & (curvature > 0), slope / jnp.where(curvature > 0, curvature, 1), 0)[:, None]
        residual = d.residual - length * image
        gradient = transpose(residual)
        turn = (dot(gradient, gradient) / jnp.where(slope > 0, slope, 1))[:, None]
        return _Descent(d.taken + 1, d.x + length * d.direction, residual, gradient, gradient + turn * d.direction)

    gradient = transpose(b)
    start = _Descent(jnp.zeros((), jnp.int32), jnp.zeros_like(b), b, gradient, gradient)
    return lax.while_loop(lambda d: jnp.any(running(d)) & (d.taken < max_steps), descend, start).x
