"""The logarithm's power series, cut off or cut off at random."""

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammainc
from jaxtyping import Array, Float, Int, Key

from deqflow.flows.log_determinant import Moment, TraceEstimator
from deqflow.implicit.bicgstab import BiCGStab
from deqflow.implicit.linear import LinearSolver
from deqflow.implicit.trees import Map, Vectors, accumulator, dot, scale
from deqflow.registry import Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerSeries(TraceEstimator):
    """The first terms of the logarithm's series.

        vᵀ log(I + J) v ≈ Σ_{k=1}^{terms} (-1)^{k+1} vᵀ Jᵏ v / k

    It converges where the spectral radius of J is below 1, the slower the nearer to 1. With `linear=None` the derivative is that of the
    series, a Neumann series of as many terms; otherwise that of the logarithm.

    Args:
      terms: number of terms, a product with Jᵀ each.
      probes: number of probes per sample.
      orthogonal: whether those of one sample are orthogonal to each other.
      linear: how the derivative's linear system is solved; `None` for the Neumann series.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from deqflow.flows import log_det
      >>> value, _ = log_det(lambda x: 0.1 * x, jnp.ones((1, 3)), PowerSeries(terms=4), jax.random.key(0))
      >>> print(f"{value.item():.5f}")     # 3 log 1.1 = 0.28593
      0.28593

    Behrmann et al., "Invertible residual networks", 2019.
    """

    terms: Annotated[int, Range(ge=1)] = 10
    linear: LinearSolver | None = BiCGStab(rtol=1e-5)

    def moment(self, transpose: Map, v: Vectors, key: Key[Array, ""], probes: int) -> Moment:
        terms = jnp.full((probes,), self.terms)
        value, solution = _series(transpose, v, terms, lambda k: jnp.ones((probes,)))
        return Moment(value, solution if self.linear is None else _solved(self.linear, transpose, v))

    def truncation_bound(self, dimension: int, lipschitz: float) -> float:
        """How far the expected value can be from the log-determinant: `n c^{terms+1} / ((terms+1) (1-c))`.

        Args:
          dimension: n, of one sample.
          lipschitz: c, a certified bound on the Lipschitz constant of g; at 1 or above the answer is infinite.
        """
        if not lipschitz < 1:
            return math.inf
        return dimension * lipschitz ** (self.terms + 1) / ((self.terms + 1) * (1 - lipschitz))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RussianRoulette(TraceEstimator):
    """The logarithm's series, cut off at random and reweighted so that its expectation is that of all terms.

        vᵀ log(I + J) v = E_N[ Σ_{k=1}^{m+N} (-1)^{k+1} vᵀ Jᵏ v / (k P(N >= k - m)) ],   m = exact_terms

    It is unbiased where the spectral radius of J is below 1, at the price of variance, which is finite as long as the tail of N falls more
    slowly than the square of that radius. Every probe draws its own N, the same for all samples, and the most count for the cost.

    Args:
      law: of N: `geometric`, `P(N >= j) = (1 - p)ʲ`, or `poisson`.
      mean: of N; the geometric law has `p = 1 / (1 + mean)`.
      exact_terms: number of terms that are always there.
      probes: number of probes per sample.
      orthogonal: whether those of one sample are orthogonal to each other.
      linear: how the derivative's linear system is solved; `None` for a Neumann series with the same N, which is unbiased too.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from deqflow.flows import log_det
      >>> log_det(lambda x: 0.1 * x, jnp.ones((1, 3)), RussianRoulette(), jax.random.key(0)).value.shape
      (1,)

    Chen, Behrmann, Duvenaud and Jacobsen, "Residual flows for invertible generative modeling", 2019.
    """

    law: Literal["geometric", "poisson"] = "geometric"
    mean: Annotated[float, Range(gt=0)] = 1.0
    exact_terms: Annotated[int, Range(ge=0)] = 4
    linear: LinearSolver | None = BiCGStab(rtol=1e-5)

    def moment(self, transpose: Map, v: Vectors, key: Key[Array, ""], probes: int) -> Moment:
        weight = lambda k: 1 / self._tail(jnp.maximum(k - self.exact_terms, 0))  # noqa: E731
        value, solution = _series(transpose, v, self.exact_terms + self._draw(key, probes), weight)
        return Moment(value, solution if self.linear is None else _solved(self.linear, transpose, v))

    def _draw(self, key: Key[Array, ""], probes: int) -> Int[Array, " probes"]:
        if self.law == "poisson":
            return jax.random.poisson(key, self.mean, (probes,))
        # -log U is exponential, and its whole part in units of -log(1 - p) geometric.
        return jnp.floor(jax.random.exponential(key, (probes,)) / math.log1p(1 / self.mean)).astype(jnp.int32)

    def _tail(self, j: Int[Array, ""]) -> Float[Array, ""]:
        """`P(N >= j)`."""
        if self.law == "poisson":
            return jnp.where(j > 0, gammainc(jnp.maximum(j, 1), self.mean), 1.0)
        return (self.mean / (1 + self.mean)) ** j.astype(float)


def _solved(linear: LinearSolver, transpose: Map, v: Vectors) -> Vectors:
    """`(I + J)⁻ᵀ v`."""
    return linear.product(lambda w: w + transpose(w).astype(w.dtype), v)


def _series(transpose: Map, v: Vectors, terms: Int[Array, " probes"], weight: Map) -> tuple[Float[Array, " rows"], Vectors]:
    """`Σ_k weight(k) (-1)^{k+1} vᵀ Jᵏ v / k` with `terms` of them for each probe, and the Neumann series that belongs to it.

    w = Σ_k weight(k) (-1)^{k-1} (Jᵀ)^{k-1} v,   so that   E[wᵀ (∂J) v] = ∂ E[Σ_k weight(k) (-1)^{k+1} tr Jᵏ / k]
    """
    wide = accumulator(v.dtype)
    v = v.astype(wide)
    samples = len(v) // len(terms)

    def add(k: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        power, value, solution = carry  # power = (-Jᵀ)^{k-1} v
        w = jnp.repeat(jnp.where(k <= terms, weight(k), 0).astype(wide), samples)
        solution = solution + scale(w, power)
        power = -transpose(power).astype(wide)
        return power, value - w / k * dot(power, v), solution

    start = (v, jnp.zeros(len(v), wide), jnp.zeros_like(v))
    _, value, solution = lax.fori_loop(1, jnp.max(terms) + 1, add, start)
    return value, solution
