"""Broyden's method with limited memory."""

import dataclasses
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deqflow.implicit.solver import Iterate, Solver
from deqflow.implicit.trees import Map, Vectors, accumulator, combine, dot, finite, norm, over, per_row, scale, select
from deqflow.registry import Range

# A trial step is accepted when its residual is at most this many times the largest of the last few: Broyden's residuals are not
# monotone on their way down, and a stricter rule costs evaluations on well-behaved problems without saving any on others.
_GROWTH = 2.0
_WINDOW = 5


class Pairs(NamedTuple):
    """The last secant pairs, ring buffers: the steps, of unit length, and what the residual changed by, divided by the same length.

    Attributes:
      steps: `S`.
      sums: `T = S + Y`, with `Y` the changes of the residual `f(z) - z`; so `T` is how `f` changed.
      step_gram: `SᵀS`.
      cross_gram: `SᵀT`.
      age: when each pair was made; negative for an empty place.
    """

    steps: Float[Array, "batch m *n"]
    sums: Float[Array, "batch m *n"]
    step_gram: Float[Array, "batch m m"]
    cross_gram: Float[Array, "batch m m"]
    age: Int[Array, "batch m"]


class _State(NamedTuple):
    taken: Int[Array, ""]
    z: Vectors  # the point where the method stands
    f: Vectors
    recent: Float[Array, "batch window"]  # the norms of the last accepted residuals, negative before the first
    reach: Float[Array, " batch"]  # the longest step allowed: infinite, or half of the last rejected one
    pairs: Pairs


def inverse_product(pairs: Pairs, v: Vectors, *, transpose: bool = False) -> Vectors:
    """`(I - J)⁻¹ v`, or `(I - J)⁻ᵀ v`, for Broyden's approximation J of `∂f/∂z`.

        (I - J)⁻¹ = I + T M⁻¹ Sᵀ,   M = triu(SᵀS) - SᵀT

    with the columns of S and T in the order in which they were made. Whatever pairs are left, this is exactly what Broyden's updates
    with those pairs make of `J = 0`, so a ring buffer that has wrapped around is as sound as one that has not.
    """
    known = pairs.age >= 0
    later = pairs.age[:, None, :] >= pairs.age[:, :, None]
    matrix = jnp.where(later, pairs.step_gram, 0) - pairs.cross_gram
    matrix = jnp.where(known[:, :, None] & known[:, None, :], matrix, jnp.eye(matrix.shape[1], dtype=matrix.dtype))
    left, right = (pairs.sums, pairs.steps) if transpose else (pairs.steps, pairs.sums)
    weights = jnp.linalg.solve(jnp.swapaxes(matrix, 1, 2) if transpose else matrix, dot(left, v)[:, :, None])[:, :, 0]
    # What a restart has forgotten is still in the buffers.
    product = v + combine(jnp.where(known, weights, 0), right)
    # A pair whose update is undefined (sᵀy = 0) makes M singular.
    return select(finite(product), product, v)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """Broyden's ("good") quasi-Newton method with limited memory and a line search.

        z_{k+1} = z_k + (I - J_k)⁻¹ (f(z_k) - z_k),   J_{k+1} = J_k + (Δf - J_k s) sᵀ / ‖s‖²,   J_0 = 0

    where `s` is the last step and `Δf` how `f` changed along it. The first step is one of plain iteration. Only the last `memory`
    pairs `(s, Δf)` are kept, and the matrix is what the updates make of them alone, through one linear system of that size; so the
    memory may wrap around any number of times. A step that makes the residual much larger than any of the last few is taken back:
    its pair improves the matrix all the same, and the next trial is at most half as long.

    Args:
      memory: number of pairs kept, two states each.
      atol: absolute tolerance.
      rtol: relative tolerance.
      max_steps: step limit.
      check_every: the residual is looked at after every so many steps.
      precision: of the matrix products in `f`.
      bfloat16_until: the relative residual down to which these products are rounded to bfloat16.

    Example:
      >>> import jax.numpy as jnp
      >>> import deqflow
      >>> sol = deqflow.fixed_point(jnp.cos, jnp.zeros((1, 1)), solver=Broyden(rtol=1e-5))
      >>> print(f"{sol.value.item():.4f} after {sol.stats.steps.item()} steps")
      0.7391 after 6 steps

    Broyden, "A class of methods for solving nonlinear simultaneous equations", 1965; Byrd, Nocedal and Schnabel, "Representations of
    quasi-Newton matrices and their use in limited memory methods", 1994; Li and Fukushima, "A derivative-free line search and global
    convergence of Broyden-like method for nonlinear equations", 2000.
    """

    memory: Annotated[int, Range(ge=1)] = 10

    def init(self, z0: Vectors) -> _State:
        # Derived from z0, so that the buffers are sharded as it is.
        buffer = jnp.repeat(jnp.zeros_like(z0)[:, None], self.memory, axis=1)
        real = accumulator(z0.dtype)
        gram = per_row(z0, jnp.zeros((self.memory, self.memory)), real)
        age = per_row(z0, jnp.full((self.memory,), -1), jnp.int32)
        return _State(
            taken=jnp.zeros((), jnp.int32),
            z=z0,
            f=z0,  # makes the first trial z0 itself
            recent=per_row(z0, jnp.full(_WINDOW, -1), real),
            reach=per_row(z0, jnp.inf, real),
            pairs=Pairs(buffer, buffer, gram, gram, age),
        )

    def step(self, f: Map, state: _State) -> _State:
        before = state.f - state.z
        direction = inverse_product(state.pairs, before)
        wanted = norm(direction)
        far = state.reach < wanted
        shorten = jnp.where(far, jnp.where(far, state.reach, 1) / jnp.where(far, wanted, 1), 1)
        direction = scale(shorten.astype(direction.dtype), direction)
        trial = state.z + direction
        image = f(trial)
        residual = image - trial
        size = norm(residual)

        first = state.recent[:, 0] < 0
        accepted = first | (size <= _GROWTH * jnp.max(state.recent, axis=1))
        recent = jnp.where(first[:, None], size[:, None], jnp.roll(state.recent, 1, axis=1).at[:, 0].set(size))
        length = wanted * shorten
        pairs = _remember(state.pairs, state.taken - 1, direction, residual - before, length)
        return _State(
            taken=state.taken + 1,
            z=select(accepted, trial, state.z),
            f=select(accepted, image, state.f),
            recent=select(accepted, recent, state.recent),
            reach=jnp.where(accepted, jnp.inf, length / 2),
            pairs=pairs,
        )

    def restart(self, state: _State, z: Vectors, rows: Bool[Array, " batch"]) -> _State:
        return state._replace(
            z=select(rows, z, state.z),
            f=select(rows, z, state.f),
            recent=jnp.where(over(rows, state.recent), -1, state.recent),
            reach=jnp.where(rows, jnp.inf, state.reach),
            pairs=state.pairs._replace(age=jnp.where(over(rows, state.pairs.age), -1, state.pairs.age)),
        )

    def value(self, state: _State) -> Iterate:
        return Iterate(state.z, state.f, per_row(state.z, state.taken, jnp.int32))


def _remember(pairs: Pairs, number: Int[Array, ""], step: Vectors, change: Vectors, length: Float[Array, " batch"]) -> Pairs:
    """The pairs with one more in the place of the oldest; a step of no length, or into where `f` is not finite, leaves an empty one."""
    usable = (number >= 0) & (length > 0) & finite(change)
    unit = jnp.where(usable, 1 / jnp.where(length > 0, length, 1), 0).astype(step.dtype)
    s, t = scale(unit, step), jnp.where(over(usable, step), scale(unit, change + step), 0)
    slot = number % pairs.age.shape[1]
    steps = lax.dynamic_update_index_in_dim(pairs.steps, s, slot, 1)
    sums = lax.dynamic_update_index_in_dim(pairs.sums, t, slot, 1)
    across = dot(steps, s)
    step_gram = lax.dynamic_update_index_in_dim(pairs.step_gram, across, slot, 1)
    step_gram = lax.dynamic_update_index_in_dim(step_gram, across, slot, 2)
    cross_gram = lax.dynamic_update_index_in_dim(pairs.cross_gram, dot(sums, s), slot, 1)
    cross_gram = lax.dynamic_update_index_in_dim(cross_gram, dot(steps, t), slot, 2)
    age = lax.dynamic_update_index_in_dim(pairs.age, jnp.where(usable, number, -1), slot, 1)
    return Pairs(steps, sums, step_gram, cross_gram, age)
