"""The fixed-point problems of `solvers.py`, as functions that log every evaluation and every Jacobian product that is executed.

    f(z) = A z + b    or    f(z) = tanh(A z + b)

What a library reports about itself is not asked for: the log is written on the host, when the function runs. An evaluation is one call of
`f` at one point; a product of its Jacobian, or of the transposed one, with one vector counts as much. As the Jacobian of a function in
general depends on the point, to linearise is an evaluation too, also where `f` happens to be affine.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

SIZE = 64
TOLERANCE = 1e-6
LIMIT = 5000
_LOST, _PATIENCE = 1e12, 200


@dataclasses.dataclass(frozen=True)
class Problem:
    """`A` standard normal, scaled to a spectral radius, and `b` standard normal."""

    title: str
    radius: float
    curved: bool

    def draw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((SIZE, SIZE))
        return A * (self.radius / np.abs(np.linalg.eigvals(A)).max()), rng.standard_normal(SIZE)


PROBLEMS = {
    "affine_0.9": Problem("A z + b, spectral radius 0.9", 0.9, False),
    "affine_0.99": Problem("A z + b, spectral radius 0.99", 0.99, False),
    "tanh_0.9": Problem("tanh(A z + b), spectral radius 0.9", 0.9, True),
}


class Over(Exception):
    """Ends a solve in Python."""


class Log:
    """One solve: `residuals[k]` is `‖f(z) - z‖₂` at the k-th evaluation, NaN where that was a Jacobian product."""

    def __init__(self, limit: float = LIMIT):
        self.limit = limit
        self.residuals: list[float] = []
        self.met = False
        self.lost = 0  # evaluations in a row whose residual was beyond `_LOST`, or no number

    @property
    def evaluations(self) -> float:
        """How many it took until the residual was first within the tolerance; infinite if that did not happen within the limit."""
        return len(self.residuals) if self.met else math.inf

    def best(self) -> np.ndarray:
        """The smallest residual seen after each evaluation."""
        return np.fmin.accumulate(np.asarray(self.residuals, np.float64))

    def over(self) -> bool:
        """Whether the solve has met the tolerance, spent its limit or diverged."""
        return self.met or len(self.residuals) >= self.limit or self.lost >= _PATIENCE

    def evaluation(self, z: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Log an evaluation, and pass on its value; once the solve is over, `z` itself, so that every solver stops, by whatever rule."""
        if self.over():
            return z
        with np.errstate(all="ignore"):  # some diverge
            self.residuals.append(float(np.linalg.norm(value - z)))
        self.met = self.residuals[-1] <= TOLERANCE
        self.lost = 0 if self.residuals[-1] < _LOST else self.lost + 1
        return value

    def products(self, count: int) -> None:
        """Log Jacobian products."""
        if not self.over():
            self.residuals += [math.nan] * count


_current = Log()


Run = Callable[[np.ndarray, np.ndarray, bool], Any]
"""Solves the problem of `A`, `b` and `curved`, through one of the maps below."""


def solve(run: Run, problem: Problem, seed: int, limit: float = LIMIT) -> tuple[Log, Any]:
    """The log of one solve of the problem of a seed, and what it returned."""
    global _current
    _current = Log(limit)
    out = jax.block_until_ready(run(*problem.draw(seed), problem.curved))
    return _current, out


def products(run: Callable[[], Any]) -> int:
    """How many vectors pass through `counted` when `run` runs."""
    global _current
    _current = Log(math.inf)
    jax.block_until_ready(run())
    return len(_current.residuals)


def torch_map(A: Any, b: Any, curved: bool) -> Callable[[Any], Any]:
    """`f` on tensors with a leading batch axis of size one."""
    import torch  # pyright: ignore[reportMissingImports]

    def f(z: Any) -> Any:
        if _current.over():
            raise Over
        y = z @ A.T + b
        y = torch.tanh(y) if curved else y
        return torch.from_numpy(_current.evaluation(z[0].numpy(), y[0].numpy()))[None]

    return f


def jax_map(A: jax.Array, b: jax.Array, curved: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """`f` on vectors, differentiable to first order in both modes; one compilation serves all problems."""
    return functools.partial(_evaluate, A, b, jnp.asarray(curved, A.dtype))


@jax.custom_jvp
def _evaluate(A: jax.Array, b: jax.Array, curved: jax.Array, z: jax.Array) -> jax.Array:
    y = A @ z + b
    y = jnp.where(curved > 0, jnp.tanh(y), y)
    return jax.pure_callback(_log_evaluation, jax.ShapeDtypeStruct(z.shape, z.dtype), z, y, vmap_method="sequential")


@_evaluate.defjvp  # pyright: ignore[reportFunctionMemberAccess]
def _evaluate_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    A, b, curved, z = primals
    y = _evaluate(A, b, curved, z)
    return y, (1 - curved * y**2) * (A @ counted(tangents[3]))


def _log_evaluation(z: jax.Array, y: jax.Array) -> np.ndarray:
    return _current.evaluation(np.asarray(z), np.asarray(y))


def counted(v: jax.Array) -> jax.Array:
    """The identity, linear, which logs a Jacobian product for every vector that passes through it or its transpose."""
    return _counted_p.bind(v)


def _log_products(v: jax.Array) -> np.ndarray:
    _current.products(v.size // SIZE)
    return np.asarray(v)


def _counted(v: jax.Array) -> jax.Array:
    return jax.pure_callback(_log_products, jax.ShapeDtypeStruct(v.shape, v.dtype), v)


_counted_p = jax.extend.core.Primitive("counted")
_counted_p.def_impl(jax.jit(_counted))
_counted_p.def_abstract_eval(lambda v: v)
ad.deflinear2(_counted_p, lambda cotangent, _: [counted(cotangent)])
batching.primitive_batchers[_counted_p] = lambda args, axes: (counted(args[0]), axes[0])
mlir.register_lowering(_counted_p, mlir.lower_fun(_counted, multiple_results=False))
