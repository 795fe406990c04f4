"""Invertible linear maps."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.flows.bijector import Bijector, DataDependent, Transformed, check_event


class InvertibleLinear(Bijector, DataDependent):
    """An invertible linear map of the last axis, by its PLU factors: `z = P L U x`.

    P is a fixed permutation, L lower triangular with ones on its diagonal, U upper triangular with the diagonal `sign · exp(log_scale)`. On
    vectors it mixes all dimensions; on images it is the 1 x 1 convolution of Glow. The log-determinant is the sum of `log_scale`, times the
    number of positions; the inverse solves two triangular systems.

    It starts as a random orthogonal matrix or, with `whiten`, as the identity, which `initialize` turns into a lower triangular matrix that
    gives a batch of data the covariance I: what follows then need not undo the correlations.

    Args:
      event_shape: shape of one sample; the last axis is mixed.
      whiten: start from the covariance of data.
      rngs: where the first matrix is drawn from.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> mix = InvertibleLinear((4, 4, 3), rngs=nnx.Rngs(0))
      >>> z, log_det, _ = mix.forward_and_log_det(jnp.ones((2, 4, 4, 3)))
      >>> z.shape, bool(jnp.allclose(log_det, 0, atol=1e-4))      # an orthogonal matrix keeps volumes
      ((2, 4, 4, 3), True)

    Kingma and Dhariwal: Glow: generative flow with invertible 1x1 convolutions. NeurIPS 2018; Oliva et al.: Transformation autoregressive
    networks. ICML 2018, for vectors.
    """

    def __init__(self, event_shape: tuple[int, ...], *, whiten: bool = False, rngs: nnx.Rngs) -> None:
        self.event_shape = event_shape
        self.whiten = whiten
        size = event_shape[-1]
        matrix = jnp.eye(size) if whiten else jnp.linalg.qr(jax.random.normal(rngs.params(), (size, size)))[0]
        permutation, lower, upper = jax.scipy.linalg.lu(matrix)
        # Variables rather than constants, so that blocks which differ in them are still one program: see `Repeat`.
        self.order = nnx.Variable(jnp.argmax(permutation, axis=1).astype(jnp.int32))  # z = (L U x)[order]
        diagonal = jnp.diagonal(upper)
        self.signs = nnx.Variable(jnp.sign(diagonal).astype(jnp.int8))
        self.log_scale = nnx.Param(jnp.log(jnp.abs(diagonal)))
        self.lower = nnx.Param(jnp.tril(lower, -1))
        self.upper = nnx.Param(jnp.triu(upper, 1))

    def initialize(self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None) -> None:
        """With `whiten`, set the matrix to the inverse Cholesky factor of the covariance of `x`; otherwise change nothing.

        Raises:
          ValueError: if there are not more vectors than dimensions.
        """
        check_event(self, x)
        if not self.whiten:
            return
        rows = x.reshape(-1, x.shape[-1])
        count, size = rows.shape
        if count <= size:
            raise ValueError(f"whitening {size} dimensions needs a batch of more than {size} vectors, got {count}; use a larger batch")
        centred = rows - rows.mean(0)
        # Directions that hardly vary are not blown up beyond what rounding leaves of them.
        covariance = centred.T @ centred / count
        covariance += 4 * float(jnp.finfo(x.dtype).eps) * jnp.trace(covariance) / size * jnp.eye(size, dtype=x.dtype)
        factor = jnp.linalg.cholesky(covariance)
        inverse = jax.scipy.linalg.solve_triangular(factor, jnp.eye(size, dtype=x.dtype), lower=True)
        diagonal = jnp.diagonal(inverse)
        self.log_scale[...] = jnp.log(diagonal).astype(self.log_scale.dtype)
        self.lower[...] = jnp.tril(inverse / diagonal, -1).astype(self.lower.dtype)

    def forward_and_log_det(
        self, x: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, x)
        lower, upper = self._factors(x)
        # One product of small matrices, then one with the data.
        matrix = jnp.matmul(lower, upper, precision="highest")[self.order[...]]
        return Transformed(jnp.matmul(x, matrix.T, precision="highest"), self._log_det(x), {})

    def inverse_and_log_det(
        self, z: Float[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Transformed:
        check_event(self, z)
        lower, upper = self._factors(z)
        columns = z.reshape(-1, z.shape[-1])[:, jnp.argsort(self.order[...])].T
        columns = jax.scipy.linalg.solve_triangular(lower, columns, lower=True, unit_diagonal=True)
        columns = jax.scipy.linalg.solve_triangular(upper, columns)
        return Transformed(columns.T.reshape(z.shape), -self._log_det(z), {})

    def _factors(self, like: Array) -> tuple[Array, Array]:
        diagonal = self.signs[...].astype(like.dtype) * jnp.exp(self.log_scale[...])
        lower = jnp.tril(self.lower[...], -1) + jnp.eye(like.shape[-1], dtype=like.dtype)
        return lower, jnp.triu(self.upper[...], 1) + jnp.diag(diagonal)

    def _log_det(self, x: Array) -> Array:
        positions = math.prod(self.event_shape[:-1])
        return jnp.broadcast_to(positions * self.log_scale[...].sum(), x.shape[:1])
