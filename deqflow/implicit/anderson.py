"""Anderson acceleration."""

import dataclasses
import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deqflow.implicit.solver import Iterate, Solver
from deqflow.implicit.trees import Map, Vectors, accumulator, dot, finite, matrix, norm, over, per_row, per_sample, scale
from deqflow.registry import Range

# The history is cleared when the residual has found no new minimum for this many steps, or for half of a longer history.
_PATIENCE = 8

# Up to this history the small systems are solved number by number over the batch: calling LAPACK for a factorisation and two triangular
# solves of 5 x 5 costs a fifth of an evaluation of a 128 x 512 dense layer, this a twentieth. Code and compile time grow with its cube.
_UNROLLED = 8


class _State(NamedTuple):
    taken: Int[Array, ""]
    z: Vectors
    f: Vectors
    r: Vectors  # f - z
    residuals: Float[Array, "batch m n"]  # differences of successive residuals, a ring buffer
    images: Float[Array, "batch m+1 n"]  # the last images, z + damping r, a ring buffer too
    gram: Float[Array, "batch m m"]  # of `residuals`
    lowest: Float[Array, " batch"]  # the smallest residual since the history was last cleared
    since: Int[Array, " batch"]  # steps since then; negative while nothing is remembered


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """Anderson acceleration: plain iteration corrected by least squares on the last differences.

        γ = argmin ‖r_k - ΔR γ‖₂,   z_{k+1} = z_k + damping r_k - (ΔZ + damping ΔR) γ,   r = f(z) - z

    where the columns of ΔR and ΔZ are the last `history` differences of residuals and iterates. It converges on many maps that are no
    contraction, at the cost of two buffers of `history` states. The least squares are solved through the Gram matrix of the
    differences, updated by one row per step and regularised relative to their squared lengths.

    Args:
      history: number of differences kept.
      damping: the fraction of the residual that is added, in (0, 1].
      ridge: regularisation relative to the squared length of the differences; rounding sets a floor for it.
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: step limit.
      check_every: the residual is looked at after every so many steps.
      precision: of the matrix products in `f`.
      bfloat16_until: the relative residual down to which these products are rounded to bfloat16.

    Example:
      >>> import jax.numpy as jnp
      >>> import deqflow
      >>> sol = deqflow.fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=Anderson(rtol=1e-5))
      >>> print(f"{sol.value.item():.4f} after {sol.stats.steps.item()} steps")
      0.7391 after 6 steps

    Anderson, "Iterative procedures for nonlinear integral equations", 1965; Walker and Ni, "Anderson acceleration for fixed-point
    iterations", 2011.
    """

    history: Annotated[int, Range(ge=1)] = 5
    damping: Annotated[float, Range(gt=0, le=1)] = 1.0
    ridge: Annotated[float, Range(ge=0)] = 0.0

    def init(self, z0: Vectors) -> _State:
        # Derived from z0, so that the buffers are sharded as it is.
        copies = lambda z, count: jnp.repeat(matrix(z)[:, None], count, axis=1)  # noqa: E731
        gram = per_row(z0, jnp.zeros((self.history, self.history)), accumulator(z0.dtype))
        number = gram[:, 0, 0]
        return _State(
            taken=jnp.zeros((), jnp.int32),
            z=z0,
            f=z0,
            r=jnp.zeros_like(z0),
            residuals=copies(jnp.zeros_like(z0), self.history),
            images=copies(z0, self.history + 1),  # makes the first proposal z0 itself
            gram=gram,
            lowest=number + jnp.inf,
            since=number.astype(jnp.int32) - 1,
        )

    def step(self, f: Map, state: _State) -> _State:
        # Carrying these products along by the row formed below would spare a pass over the history, but what rounding leaves of earlier,
        # larger residuals would be divided by the smallest eigenvalue.
        weights = self._weights(state.gram, dot(state.residuals, matrix(state.r)))
        newest = lax.dynamic_index_in_dim(state.images, state.taken % (self.history + 1), 1, keepdims=False)
        z = (newest.reshape(state.z.shape) - self._correction(weights, state)).astype(state.z.dtype)
        fz = f(z)
        r = fz - z

        # The difference to the pretended first residual is no difference of residuals: leave the buffer empty then.
        change = jnp.where(over(state.since >= 0, matrix(r)), matrix(r) - matrix(state.r), 0)
        size = norm(r)
        lower = size < state.lowest
        since = jnp.where(lower & (state.since >= -1), 0, state.since + 1)
        # Clearing the history makes the next step one of plain iteration.
        clear = since > max(_PATIENCE, self.history // 2)

        slot = (state.taken - 1) % self.history
        residuals = lax.dynamic_update_index_in_dim(state.residuals, change, slot, 1)
        place = (state.taken + 1) % (self.history + 1)
        images = lax.dynamic_update_index_in_dim(state.images, matrix(z + self.damping * r), place, 1)
        # A cleared column is still in the buffers: its row of the Gram matrix stays zero until it is overwritten.
        kept = (jnp.diagonal(state.gram, axis1=1, axis2=2) > 0) | (jnp.arange(self.history) == slot)
        row = jnp.where(kept, dot(residuals, change), 0)
        gram = lax.dynamic_update_index_in_dim(state.gram, row, slot, 1)
        gram = lax.dynamic_update_index_in_dim(gram, row, slot, 2)
        gram = jnp.where(clear[:, None, None], 0, gram)
        lowest = jnp.where(clear, jnp.inf, jnp.where(lower, size, state.lowest))
        return _State(state.taken + 1, z, fz, r, residuals, images, gram, lowest, jnp.where(clear, 0, since))

    def _correction(self, weights: Float[Array, "batch m"], state: _State) -> Vectors:
        """`(ΔZ + damping ΔR) γ`, term by term: fused with what it is taken from, it makes one pass.

        The differences of successive images are formed on the way. Kept like those of the residuals, they would be read as often, and
        written besides.
        """
        places = self.history + 1
        # From each place of the ring to the next is a difference, but for the newest image: there the oldest is next.
        age = (state.taken - 1 - jnp.arange(places)) % places
        column = (state.taken - 2 - age) % self.history
        belongs = (jnp.arange(self.history)[:, None] == column) & (age < self.history)
        ordered = jnp.matmul(weights, belongs.astype(weights.dtype), precision="highest")
        # In the shape of z before they are summed, which XLA on the CPU would not vectorise otherwise.
        images = [state.images[:, place].reshape(state.z.shape) for place in range(places)]
        terms = [scale(ordered[:, place], images[(place + 1) % places] - images[place]) for place in range(places)]
        return functools.reduce(jnp.add, terms)

    def restart(self, state: _State, z: Vectors, rows: Bool[Array, " batch"]) -> _State:
        # The newest image is the next point, and without a Gram matrix nothing is taken from it.
        place = state.taken % (self.history + 1)
        newest = lax.dynamic_index_in_dim(state.images, place, 1, keepdims=False)
        newest = jnp.where(over(rows, newest), matrix(z), newest)
        return state._replace(
            images=lax.dynamic_update_index_in_dim(state.images, newest, place, 1),
            gram=jnp.where(over(rows, state.gram), 0, state.gram),
            lowest=jnp.where(rows, jnp.inf, state.lowest),
            # Plain steps up to the next look, which is to see what they achieve.
            since=jnp.where(rows, -self.check_every, state.since),
        )

    def value(self, state: _State) -> Iterate:
        return Iterate(state.z, state.f, per_row(state.z, state.taken, jnp.int32), state.r)

    def _weights(self, gram: Float[Array, "batch m m"], target: Float[Array, "batch m"]) -> Float[Array, "batch m"]:
        """The regularised least squares solution γ; empty columns of the buffer get weight zero."""
        square = jnp.diagonal(gram, axis1=1, axis2=2)
        # Rounding moves the eigenvalues of the cosines between columns by some eps each, and more columns than dimensions leave them at
        # zero. A Cholesky factor does not mind the scale of rows and columns, so the columns need not be scaled to unit length for it.
        floor = 10 * self.history * float(jnp.finfo(gram.dtype).eps)
        # Empty columns have a zero row here; a one on their diagonal keeps the matrix definite.
        lift = jnp.where(square > 0, (floor + self.ridge) * square, 1)
        lifted = gram + lift[:, :, None] * jnp.eye(self.history, dtype=gram.dtype)
        weights = _solve_definite(lifted, jnp.where(square > 0, target, 0))
        return jnp.where(over(finite(weights), weights), weights, 0)


def _solve_definite(a: Float[Array, "batch m m"], b: Float[Array, "batch m"]) -> Float[Array, "batch m"]:
    """`a⁻¹ b` for positive definite `a` by its Cholesky factor."""
    if a.shape[1] > _UNROLLED:
        return per_sample(lambda a, b: jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), b[:, :, None])[:, :, 0], a, b)
    m = a.shape[1]
    factor: dict[tuple[int, int], Array] = {}
    inverse, half, x = [], [], [b[:, 0]] * m
    for j in range(m):
        inverse.append(lax.rsqrt(_less(a[:, j, j], [(factor[j, k], factor[j, k]) for k in range(j)])))
        for i in range(j + 1, m):
            factor[i, j] = inverse[j] * _less(a[:, i, j], [(factor[i, k], factor[j, k]) for k in range(j)])
        half.append(inverse[j] * _less(b[:, j], [(factor[j, k], half[k]) for k in range(j)]))
    for j in reversed(range(m)):
        x[j] = inverse[j] * _less(half[j], [(factor[i, j], x[i]) for i in range(j + 1, m)])
    return jnp.stack(x, axis=1)


def _less(start: Array, products: list[tuple[Array, Array]]) -> Array:
    """`start` less the products of the pairs."""
    return functools.reduce(lambda rest, pair: rest - pair[0] * pair[1], products, start)
