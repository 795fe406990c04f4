"""How healthy solutions and their gradients are, cheap enough to be watched in training."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deqflow.implicit.arnoldi import arnoldi, golub_kahan
from deqflow.implicit.gradient import Gradient, Implicit
from deqflow.implicit.trees import Map, Vectors, norm, relative

_ARNOLDI_STEPS, _NORM_STEPS = 32, 8
_SQUARINGS = 14


class Health(NamedTuple):
    """What `health` measures, with `J = ∂f/∂z` at the solution.

    Attributes:
      spectral_radius: of J; plain iteration converges nearby where it is below 1.
      jacobian_norm: `‖J‖₂`, a lower estimate; `f` contracts nearby, in the Euclidean norm, where it is below 1.
      backward_residual: `‖g - (I - J)ᵀ w‖₂ / ‖g‖₂` of what the linear solver of the gradient makes of a random g; `None` for a kind of
        gradient that solves nothing.
      backward_steps: the steps of that solver; `None` likewise.
    """

    spectral_radius: Float[Array, " batch"]
    jacobian_norm: Float[Array, " batch"]
    backward_residual: Float[Array, " batch"] | None
    backward_steps: Float[Array, " batch"] | None


def health(f: Map, z: Vectors, gradient: Gradient) -> Health:
    """Some of the numbers of `deqflow.diagnose`, for every solution z of `z = f(z)`; unlike that, for the inside of `jit`.

    It takes some fifty products with J and its transpose, and those of the backward solve, whose vectors are the same at every call.

    Example:
      >>> W = 0.9 * jnp.array([[0.0, -1.0], [1.0, 0.0]])
      >>> h = jax.jit(lambda z: health(lambda z: z @ W, z, Implicit()))(jnp.zeros((3, 2)))
      >>> print(f"{h.spectral_radius[0]:.3f} {h.jacobian_norm[0]:.3f}")
      0.900 0.900
    """
    n = math.prod(z.shape[1:])
    # Added to zeros of the state's own, so that they are sharded as that is.
    start, g = (jnp.zeros_like(z) + jax.random.normal(jax.random.key(i), z.shape, z.dtype) for i in range(2))
    with jax.default_matmul_precision("highest"):
        _, product = jax.linearize(f, z)
        transposed = jax.linear_transpose(product, z)
        transpose = lambda v: transposed(v)[0]  # noqa: E731
        square = arnoldi(product, start, min(_ARNOLDI_STEPS, n)).hessenberg[:, :-1]
        bidiagonal = golub_kahan(product, transpose, start, min(_NORM_STEPS, n)).matrix
        radius = spectral_radius(square)
        largest = jnp.sqrt(spectral_radius(jnp.swapaxes(bidiagonal, 1, 2) @ bidiagonal))
    if not isinstance(gradient, Implicit):
        return Health(radius, largest, None, None)
    with jax.default_matmul_precision(gradient.precision):
        minus = lambda v: v - transpose(v)  # noqa: E731
        w, stats = gradient.linear.solve_rows(minus, g)
        left = relative(norm(g - minus(w)), norm(g))
    return Health(radius, largest, left, stats.steps.astype(left.dtype))


def spectral_radius(matrices: Float[Array, "batch m m"]) -> Float[Array, " batch"]:
    """The largest modulus of an eigenvalue of small matrices, where `eig` does not lower for the device.

        ρ(A) = lim ‖A^k‖^{1/k},   k = 2^14 by squaring

    which is too large by a factor of `κ^{1/k}` at most, for eigenvectors of condition κ.

    Example:
      >>> print(spectral_radius(jnp.array([[[0.5, 9.0], [0.0, -0.8]]])).round(3))
      [0.8]

    Gelfand, "Normierte Ringe", 1941.
    """

    def square(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        power, log = carry
        size = jnp.max(jnp.abs(power), axis=(1, 2))  # where squares of entries may overflow
        power = power / jnp.where(size > 0, size, 1)[:, None, None]
        return jnp.matmul(power, power, precision="highest"), log + jnp.log(size) * 0.5**i

    return jnp.exp(lax.fori_loop(0, _SQUARINGS + 1, square, (matrices, jnp.zeros_like(matrices[:, 0, 0])))[1])
