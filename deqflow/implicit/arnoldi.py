"""Orthonormal bases of Krylov spaces, one per sample: Arnoldi's for a matrix, Golub and Kahan's for a matrix and its transpose."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from deqflow.implicit.linear import widened
from deqflow.implicit.trees import Map, Vectors, combine, dot, norm, over


class Part(NamedTuple):
    """A vector, taken apart along an orthonormal basis: `w = Σ_i coefficients_i basis_i + length rest`.

    Attributes:
      coefficients: one for every vector of the basis.
      length: what the basis leaves of `w`; exactly 0 where that is rounding.
      rest: its direction, a unit vector orthogonal to the basis, or zero where `length` is.
    """

    coefficients: Float[Array, "batch m"]
    length: Float[Array, " batch"]
    rest: Vectors


class Expansion(NamedTuple):
    """A Krylov basis with one more vector.

    Attributes:
      basis: with `v_{j+1}` in its row `j + 1`; a zero row where the space is invariant under A.
      column: `A v_j` in this basis, the column `j` of the Hessenberg matrix.
      length: its entry `j + 1`, which is 0 where the space is invariant.
    """

    basis: Float[Array, "batch m *n"]
    column: Float[Array, "batch m"]
    length: Float[Array, " batch"]


class Krylov(NamedTuple):
    """An orthonormal basis V of a Krylov space, and A in it: `A V[:steps] = V H`.

    Attributes:
      basis: the rows are the basis; zero beyond `dimension`.
      hessenberg: H, whose column `j` says what A makes of basis vector `j`.
      dimension: how many vectors there are before the space is invariant under A, at most `steps`. The eigenvalues of the leading
        square block of H are then eigenvalues of A.
    """

    basis: Float[Array, "batch steps+1 *n"]
    hessenberg: Float[Array, "batch steps+1 steps"]
    dimension: Int[Array, " batch"]


class Bidiagonal(NamedTuple):
    """Orthonormal bases U and V with `A V = U B`, B upper bidiagonal.

    Attributes:
      left: the rows are the basis U.
      right: the rows are the basis V; zero beyond `dimension`.
      matrix: B.
      dimension: how many vectors V has before the space is invariant under AᵀA, at most `steps`.
    """

    left: Float[Array, "batch steps *n"]
    right: Float[Array, "batch steps *n"]
    matrix: Float[Array, "batch steps steps"]
    dimension: Int[Array, " batch"]


def orthogonalise(basis: Float[Array, "batch m *n"], w: Vectors) -> Part:
    """Take `w` apart along an orthonormal basis, whose empty rows are zero.

    The basis is projected out twice: once leaves, where it takes most of `w` away, a rest that is no longer orthogonal to it.
    """
    before = norm(w)
    first = dot(basis, w)
    w = w - combine(first, basis)
    second = dot(basis, w)
    w = w - combine(second, basis)
    length = norm(w)
    closed = length <= 10 * float(jnp.finfo(w.dtype).eps) * before
    rest = jnp.where(over(closed, w), 0, w / over(jnp.where(closed, 1, length), w))
    return Part(first + second, jnp.where(closed, 0, length), rest)


def expand(apply: Map, basis: Float[Array, "batch m *n"], j: Int[Array, ""] | int) -> Expansion:
    """One step of Arnoldi: extend an orthonormal basis `v_0, ..., v_j` by what A makes of its last vector.

        h_{j+1,j} v_{j+1} = A v_j - Σ_{i<=j} h_ij v_i

    Args:
      apply: products with A, row by row, of vectors as wide as the basis: see `widened`.
      basis: the rows are the basis, in at least float32; rows beyond `j` are zero.
      j: the number of the last vector.
    """
    part = orthogonalise(basis, apply(lax.dynamic_index_in_dim(basis, j, 1, keepdims=False)))
    column = jnp.where(jnp.arange(basis.shape[1]) == j + 1, part.length[:, None], part.coefficients)
    return Expansion(lax.dynamic_update_index_in_dim(basis, part.rest, j + 1, 1), column, part.length)


def arnoldi(matvec: Map, start: Vectors, steps: int) -> Krylov:
    """An orthonormal basis of every sample's Krylov space, re-orthogonalised in at least float32.

        span{v, A v, ..., A^{steps} v},   A V_steps = V_{steps+1} H

    Args:
      matvec: products with A, a linear function that treats every row by itself.
      start: v, of shape `(batch, *n)`.
      steps: the number of products; `steps + 1` states are kept.

    Returns:
      The basis, the Hessenberg matrix, and the dimension at which the space became invariant.

    Example:
      >>> import jax.numpy as jnp
      >>> A = jnp.array([[0.0, -0.9], [0.9, 0.0]])  # a rotation, scaled
      >>> H = arnoldi(lambda v: v @ A.T, jnp.ones((1, 2)), steps=2).hessenberg
      >>> print(jnp.round(abs(jnp.linalg.eigvals(H[0, :2])), 4))
      [0.9 0.9]

    Arnoldi, "The principle of minimized iterations in the solution of the matrix eigenvalue problem", 1951; Giraud, Langou and
    Rozložník, "The loss of orthogonality in the Gram-Schmidt orthogonalization process", 2005.
    """
    apply, start = widened(matvec, start)
    hessenberg = jnp.zeros((start.shape[0], steps + 1, steps), start.dtype)

    def extend(j: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, hessenberg = carry
        new = expand(apply, basis, j)
        return new.basis, lax.dynamic_update_index_in_dim(hessenberg, new.column, j, 2)

    basis, hessenberg = lax.fori_loop(0, steps, extend, (first_row(start, steps + 1), hessenberg))
    return Krylov(basis, hessenberg, _filled(basis[:, :-1]))


def unrolled_arnoldi(matvec: Map, start: Vectors, steps: int) -> tuple[Float[Array, "batch steps *n"], Float[Array, "batch steps steps"]]:
    """`arnoldi` without the last vector and the last row, as a loop unrolled when tracing: for few steps, whose time counts.

    Where `arnoldi` works on all rows of its buffer in every step, this works on those that there are.

    Args:
      matvec: products with A.
      start: v, of shape `(batch, *n)`.
      steps: number of basis vectors, at most the dimension.

    Returns:
      The basis and the square Hessenberg matrix.
    """
    apply, start = widened(matvec, start)
    basis = first_row(start, 1)
    columns = []
    for j in range(steps):
        part = orthogonalise(basis, apply(basis[:, j]))
        below = [part.length[:, None]] if j + 1 < steps else []
        columns.append(jnp.pad(jnp.concatenate([part.coefficients, *below], axis=1), ((0, 0), (0, steps - j - 1 - len(below)))))
        if below:
            basis = jnp.concatenate([basis, part.rest[:, None]], axis=1)
    return basis, jnp.stack(columns, axis=2)


def golub_kahan(matvec: Map, transpose: Map, start: Vectors, steps: int) -> Bidiagonal:
    """Bidiagonalise every sample's matrix from a start vector, re-orthogonalised in at least float32.

        A v_j = Σ_{i<=j} b_ij u_i,   Aᵀ u_j ∈ span{v_0, ..., v_{j+1}}

    As V is orthonormal, the singular values of B lie between the smallest and the largest of A. The largest converges first, and without
    the squaring of AᵀA.

    Args:
      matvec: products with A, a linear function that treats every row by itself.
      transpose: products with Aᵀ.
      start: v_0 up to its length, of shape `(batch, *n)`.
      steps: the number of products with each; `2 steps + 1` states are kept.

    Example:
      >>> import jax.numpy as jnp
      >>> A = jnp.array([[0.0, 2.0], [0.0, 0.0]])
      >>> B = golub_kahan(lambda v: v @ A.T, lambda v: v @ A, jnp.ones((1, 2)), steps=2).matrix
      >>> print(jnp.linalg.svd(B[0], compute_uv=False)[0])
      2.0

    Golub and Kahan, "Calculating the singular values and pseudo-inverse of a matrix", 1965.
    """
    apply, start_wide = widened(matvec, start)
    back, _ = widened(transpose, start)
    right = first_row(start_wide, steps + 1)
    matrix = jnp.zeros((start.shape[0], steps, steps), right.dtype)

    def extend(j: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        left, right, matrix = carry
        part = orthogonalise(left, apply(lax.dynamic_index_in_dim(right, j, 1, keepdims=False)))
        column = jnp.where(jnp.arange(steps) == j, part.length[:, None], part.coefficients)
        left = lax.dynamic_update_index_in_dim(left, part.rest, j, 1)
        right = lax.dynamic_update_index_in_dim(right, orthogonalise(right, back(part.rest)).rest, j + 1, 1)
        return left, right, lax.dynamic_update_index_in_dim(matrix, column, j, 2)

    left, right, matrix = lax.fori_loop(0, steps, extend, (jnp.zeros_like(right[:, 1:]), right, matrix))
    return Bidiagonal(left, right[:, :-1], matrix, _filled(right[:, :-1]))


def first_row(start: Vectors, rows: int) -> Float[Array, "batch rows *n"]:
    """An empty basis but for the direction of `start`."""
    length = norm(start)
    first = start / over(jnp.where(length > 0, length, 1), start)
    return jnp.pad(first[:, None], ((0, 0), (0, rows - 1), *[(0, 0)] * (start.ndim - 1)))


def _filled(basis: Float[Array, "batch m *n"]) -> Int[Array, " batch"]:
    """How many rows of a basis are not empty."""
    return jnp.sum(jnp.any(basis != 0, axis=tuple(range(2, basis.ndim))), axis=1, dtype=jnp.int32)
