"""Arnoldi quadrature: the logarithm of a matrix in a Krylov space."""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from deqflow.flows.log_determinant import Moment, TraceEstimator
from deqflow.implicit.arnoldi import unrolled_arnoldi
from deqflow.implicit.trees import Map, Vectors, combine, norm, scale
from deqflow.registry import Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArnoldiQuadrature(TraceEstimator):
    """The logarithm of the matrix that a Krylov space sees.

        vᵀ log(I + J) v ≈ ‖v‖² e₁ᵀ log(I + H) e₁,   (I + J)⁻ᵀ v ≈ ‖v‖ V (I + H)⁻¹ e₁,   Jᵀ V = V H + h v₊ e_mᵀ

    One basis gives the value and the vector w of its derivative. For a symmetric J this is Gauss quadrature and exact for polynomials of
    degree `2 steps - 1`, twice as many as the series of as many products; in general of degree `steps`, with a better remainder. The small
    logarithm is `∫₀¹ H (I + tH)⁻¹ dt` by Gauss-Legendre, through one elimination per node that needs no pivots while `‖J‖ < 1`.

    At given probes the derivative is not that of the value. They agree in expectation as the steps approach the dimension.

    Args:
      steps: products with Jᵀ; as many states are kept for each probe.
      nodes: of the quadrature over t: 16 suffice for eigenvalues above -0.9, 32 above -0.98.
      probes: number of probes per sample.
      orthogonal: whether those of one sample are orthogonal to each other.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from deqflow.flows import log_det
      >>> value, _ = log_det(lambda x: 0.1 * x, jnp.ones((1, 3)), ArnoldiQuadrature(steps=1), jax.random.key(0))
      >>> print(f"{value.item():.5f}")     # 3 log 1.1
      0.28593

    Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", 2017, for symmetric matrices; Arnoldi's basis
    as in Saad, "Analysis of some Krylov subspace approximations to the matrix exponential operator", 1992.
    """

    steps: Annotated[int, Range(ge=1)] = 8
    nodes: Annotated[int, Range(ge=1)] = 16

    def moment(self, transpose: Map, v: Vectors, key: Key[Array, ""], probes: int) -> Moment:
        steps = min(self.steps, v[0].size)
        basis, hessenberg = unrolled_arnoldi(transpose, v, steps)
        logarithm, solution = log_and_inverse(hessenberg, self.nodes)
        length = norm(v.astype(basis.dtype))
        return Moment(length**2 * logarithm, combine(scale(length, solution), basis))


def log_and_inverse(h: Float[Array, "batch m m"], nodes: int) -> tuple[Float[Array, " batch"], Float[Array, "batch m"]]:
    """`e₁ᵀ log(I + H) e₁` and `(I + H)⁻¹ e₁` for upper Hessenberg matrices H.

    At every node t of the quadrature, and at t = 1, columns of `A = I + tH` are combined from the last to the first, each with what clears
    the entry below the diagonal: `c_k = a_k - l_k c_{k+1}`, so that `A x = e₁` has `x₁ = 1/u`, u the first entry of `c_1`, and
    `x_{k+1} = -l_k x_k`. With `u = 1 + t δ` the integrand is `e₁ᵀ H (I + tH)⁻¹ e₁ = δ / u`, without the cancellation of `(1 - 1/u) / t`.
    """
    m = h.shape[1]
    points, weights = np.polynomial.legendre.leggauss(nodes)
    t = jnp.asarray(np.append((points + 1) / 2, 1), h.dtype)[:, None, None]  # (nodes + 1, 1, 1)
    column = t * h[:, :, m - 1] + jnp.eye(m, dtype=h.dtype)[m - 1]
    multipliers = []
    excess = h[:, m - 1, m - 1]  # δ = (first entry of the column - 1) / t
    for k in reversed(range(m - 1)):
        multiplier = t[:, :, 0] * h[:, k + 1, k] / column[:, :, k + 1]
        excess = h[:, k, k] - h[:, k + 1, k] / column[:, :, k + 1] * column[:, :, k]
        column = t * h[:, : k + 1, k] + jnp.eye(m, dtype=h.dtype)[k, : k + 1] - multiplier[:, :, None] * column[:, :, : k + 1]
        multipliers.append(multiplier[-1])
    u = column[:, :, 0]
    logarithm = jnp.einsum("tb,t->b", (excess / u)[:-1], jnp.asarray(weights / 2, h.dtype), precision="highest")
    x = [1 / u[-1]]
    for multiplier in reversed(multipliers):
        x.append(-multiplier * x[-1])
    return logarithm, jnp.stack(x, axis=1)
