"""Log-determinants of `I + ∂g/∂x`, their estimators, and how they are differentiated."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from deqflow.flows.probes import draw
from deqflow.implicit.trees import Map, Vectors, accumulator, dot
from deqflow.registry import Range, check_ranges


class Estimate(NamedTuple):
    """An estimate of a log-determinant, per sample.

    Attributes:
      value: in nats.
      standard_error: of `value`, as the probes differ: zero if it is exact, NaN if there was one probe, which cannot tell.
    """

    value: Float[Array, " batch"]
    standard_error: Float[Array, " batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogDet(abc.ABC):
    """A way to compute `log |det(I + ∂g/∂x)|`; see `log_det`."""

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    @property
    @abc.abstractmethod
    def knows_error(self) -> bool:
        """Whether it estimates, and can tell how far off it may be."""

    @abc.abstractmethod
    def estimate(self, g: Map, x: Vectors, key: Key[Array, ""] | None) -> Estimate:
        """The log-determinant of every row, differentiable once at least in `x` and all that `g` closes over.

        Raises:
          ValueError: for a stochastic estimator without a key.
        """


class Moment(NamedTuple):
    """What a stochastic estimator makes of probes, one per row.

    Attributes:
      value: `vᵀ log(I + J) v`, or an unbiased estimate of it.
      solution: `(I + J)⁻ᵀ v`, likewise.
    """

    value: Float[Array, " rows"]
    solution: Vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceEstimator(LogDet):
    """A log-determinant by Hutchinson's estimate of a trace.

        log det(I + J) = tr log(I + J) = E[vᵀ log(I + J) v],   E[v vᵀ] = I
        ∂ log det(I + J) = E[wᵀ (∂J) v],   (I + J)ᵀ w = v

    The second line, with w and v held constant, is the derivative that is attached to the value, by one more product with J; it needs
    the memory of one product whatever the number of terms. Both hold while no real eigenvalue of J is -1 or below.

    Attributes:
      probes: number of vectors v per sample. Two or more give a standard error.
      orthogonal: whether those of one sample are orthogonal to each other; as many as there are dimensions then make the trace exact.
    """

    probes: Annotated[int, Range(ge=1)] = 1
    orthogonal: bool = False

    @property
    def knows_error(self) -> bool:
        return self.probes > 1

    @abc.abstractmethod
    def moment(self, transpose: Map, v: Vectors, key: Key[Array, ""], probes: int) -> Moment:
        """Estimate `vᵀ log(I + J) v` and `(I + J)⁻ᵀ v` for every row.

        Args:
          transpose: products with Jᵀ, row by row.
          v: probes; those of the first probe of every sample come first, then those of the second.
          key: randomness beside that of the probes.
          probes: their number.
        """

    def estimate(self, g: Map, x: Vectors, key: Key[Array, ""] | None) -> Estimate:
        if key is None:
            raise ValueError(f"{type(self).__name__} draws random probes: pass key=jax.random.key(...), or use Exact() in few dimensions")
        probe_key, rest_key = jax.random.split(key)
        v = draw(probe_key, x, self.probes, orthogonal=self.orthogonal)
        frozen, point = detached(g, x), lax.stop_gradient(x)
        _, pullback = jax.vjp(frozen, point)

        def transpose(rows: Vectors) -> Vectors:
            if self.probes == 1:
                return pullback(rows.astype(x.dtype))[0]
            return jax.vmap(lambda row: pullback(row)[0])(rows.astype(x.dtype).reshape(v.shape)).reshape(rows.shape)

        rows = v.reshape(-1, *x.shape[1:])
        moment = self.moment(transpose, rows, rest_key, self.probes)
        pushed = jax.vmap(lambda row: jax.jvp(g, (x,), (row,))[1])(v) if self.probes > 1 else jax.jvp(g, (x,), (v[0],))[1][None]
        wide = accumulator(x.dtype)
        slope = dot(lax.stop_gradient(moment.solution).astype(wide), pushed.reshape(rows.shape).astype(wide))
        values = moment.value.reshape(self.probes, -1)
        error = values.std(0, ddof=1) / self.probes**0.5 if self.probes > 1 else jnp.full_like(values[0], jnp.nan)
        return Estimate(
            _with_derivative(values.mean(0), slope.reshape(self.probes, -1).mean(0)).astype(x.dtype),
            lax.stop_gradient(error).astype(x.dtype),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact(LogDet):
    """`log |det(I + J)|` by LU factorisation of every sample's own matrix, which takes as many products as there are dimensions.

    For few dimensions, and as the reference for everything else. It differentiates to any order.

    Args:
      max_size: the largest dimension that is accepted.

    Raises:
      ValueError: for more than `max_size` dimensions.

    Example:
      >>> import jax.numpy as jnp
      >>> value, error = log_det(lambda x: 0.5 * x, jnp.ones((1, 2)), Exact())
      >>> print(value, error)     # 2 log 1.5
      [0.8109302] [0.]
    """

    max_size: Annotated[int, Range(ge=1)] = 1024

    @property
    def knows_error(self) -> bool:
        return False

    def estimate(self, g: Map, x: Vectors, key: Key[Array, ""] | None) -> Estimate:
        n = x[0].size
        if n > self.max_size:
            raise ValueError(
                f"Exact would form a matrix of {n} x {n} numbers per sample, more than max_size={self.max_size}; "
                "use ArnoldiQuadrature, or raise max_size"
            )
        units = jnp.eye(n, dtype=x.dtype).reshape(n, 1, *x.shape[1:])
        columns = jax.vmap(lambda e: jax.jvp(g, (x,), (jnp.broadcast_to(e, x.shape),))[1])(units)
        jacobian = jnp.moveaxis(columns.reshape(n, len(x), n), 0, 2).astype(accumulator(x.dtype))
        value = _log_abs_det(jnp.eye(n, dtype=jacobian.dtype) + jacobian).astype(x.dtype)
        return Estimate(value, jnp.zeros_like(value))


def log_det(
    g: Callable[[Any], Any],
    x: Float[Array, "batch *event"],
    estimator: LogDet = Exact(),
    key: Key[Array, ""] | None = None,
) -> Estimate:
    """`log |det(I + ∂g/∂x)|` of every sample, the log-determinant of `x + g(x)`.

    The value is always an estimate of the log-determinant itself, never of something that merely has its gradient. It differentiates with
    respect to x and all that g closes over, sample by sample: a loss may weight samples as it likes.

    Args:
      g: a function of batches, `(batch, *event)` to the same, that treats every sample by itself.
      x: where.
      estimator: how.
      key: randomness of a stochastic estimator.

    Returns:
      The value and its standard error, both `(batch,)`; `value, standard_error = ...` unpacks them.

    Raises:
      ValueError: for a stochastic estimator without a key, or a g that changes the shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from deqflow.flows import ArnoldiQuadrature
      >>> A = jnp.array([[0.3, 0.2], [0.0, -0.5]])
      >>> estimator = ArnoldiQuadrature(steps=2, probes=2, orthogonal=True)     # a full basis: exact
      >>> value, error = log_det(lambda x: x @ A.T, jnp.ones((1, 2)), estimator, jax.random.key(0))
      >>> print(jnp.round(value, 4))                                            # log 1.3 + log 0.5
      [-0.4308]
    """
    out = jax.eval_shape(g, x)
    if out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(
            f"g must keep shape and type, as x + g(x) is to be inverted: expected {x.dtype}{x.shape}, got {out.dtype}{out.shape}"
        )
    return estimator.estimate(g, x, key)


def detached(g: Map, x: Vectors) -> Map:
    """`g` as a function whose closed-over values are constants of differentiation, so that loops over it are never differentiated."""
    converted, constants = jax.closure_convert(g, x)
    constants = lax.stop_gradient(constants)
    return lambda x: converted(x, *constants)


@jax.custom_jvp
def _log_abs_det(matrices: Float[Array, "batch n n"]) -> Float[Array, " batch"]:
    return jnp.linalg.slogdet(matrices)[1]


@_log_abs_det.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # JAX's own rule solves with the matrix for every direction; one inverse serves all n of them, and reverse mode.
    (a,), (da,) = primals, tangents
    return _log_abs_det(a), jnp.einsum("bij,bji->b", jnp.linalg.inv(a), da)


@jax.custom_jvp
def _with_derivative(value: Array, slope: Array) -> Array:
    """`value`, with the derivative of `slope`; where nothing is differentiated, what only `slope` needs is not computed."""
    del slope
    return value


@_with_derivative.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[1]
