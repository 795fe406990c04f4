"""How healthy a solution and its gradient are."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_jaxpr
from jaxtyping import Array, Float, Key

from deqflow.implicit.anderson import Anderson
from deqflow.implicit.diagnosis import Diagnosis
from deqflow.implicit.gmres import GMRES
from deqflow.implicit.gradient import Gradient, Implicit
from deqflow.implicit.loop import Request
from deqflow.implicit.solution import Stats
from deqflow.implicit.solver import Solver
from deqflow.implicit.spectrum import Measured, measure, spectrum
from deqflow.implicit.status import Status
from deqflow.implicit.trees import Map, Vectors, accumulator, as_floating, check_like, matrix, norm, on_rows, relative, rows
from deqflow.registry import Range, check_ranges

T = TypeVar("T")


def diagnose(
    f: Callable[[T], T],
    z0: T,
    *,
    solver: Solver = Anderson(),
    gradient: Gradient = Implicit(),
    key: Key[Array, ""],
    batched: bool = True,
    budget: int | None = None,
    lipschitz: float | Float[Array | np.ndarray, "*batch"] | None = None,
    cotangent: T | None = None,
    steps: Annotated[int, Range(ge=1)] = 64,
) -> Diagnosis:
    """Solve `z = f(z)` as `fixed_point` does, and report how healthy the solution and its gradient are.

        J = ∂f/∂z:  |λ|_max(J),  ‖J‖₂,  σ_min(I - J),  ‖f(z) - z‖₂ / (1 - L) >= ‖z - z*‖₂,  ‖w - (I - J)⁻ᵀ g‖₂ / ‖(I - J)⁻ᵀ g‖₂

    where w is what the gradient in question makes of the cotangent g. It is for looking at a model outside of `jit`: a call compiles
    anew. States of at most `steps` numbers are diagnosed exactly, by their dense Jacobian. For larger ones all but the residuals are
    estimates from Krylov spaces, at the cost of some thousand products with J and its transpose, and of memory for some `6 steps` states
    per sample. For a root of F, diagnose `lambda y: y + F(y)`.

    Args:
      f: a function from pytrees like `z0` to the same structure, shapes and dtypes.
      z0: initial guess, a pytree of floating-point arrays; with `batched` every leaf has a leading batch axis.
      solver: how to solve.
      gradient: how to differentiate.
      key: of the random vectors: the starts of the Krylov spaces, and g.
      batched: whether there is one equation per entry of the leading axis, or a single one.
      budget: at most this many solver steps.
      lipschitz: a certified Lipschitz constant of `f` in the Euclidean norm, one number or one per sample. Below 1 it makes the error of
        the solution a bound.
      cotangent: g, a pytree like `z0`, such as the derivative of a loss with respect to the solution; random if it is not given.
      steps: the dimension of the Krylov spaces.

    Returns:
      A `Diagnosis`, of NumPy arrays with an entry per sample; `print` it. A failed sample has NaN there.

    Raises:
      TypeError: inside of `jit`, `grad` or `vmap`, or if `z0` holds anything but real floating-point arrays.
      ValueError: as `fixed_point` does, or for a negative Lipschitz constant or one of the wrong shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> W = 0.9 * jnp.array([[0.0, -1.0], [1.0, 0.0]])
      >>> d = diagnose(lambda z: jnp.tanh(z @ W + 0.1), jnp.zeros((3, 2)), key=jax.random.key(0), lipschitz=0.9)
      >>> print(f"{d.spectral_radius[0]:.3f} {d.jacobian_norm[0]:.3f} {d.condition[0]:.3f}")
      0.895 0.900 1.007
      >>> d.problems
      ()

    Arnoldi, 1951, and Golub and Kahan, 1965, as in `deqflow.implicit.arnoldi`; Trefethen and Embree, "Spectra and pseudospectra", 2005,
    on what eigenvalues do not say.
    """
    check_ranges(diagnose, {"steps": steps})
    _refuse_tracers("its arguments", (z0, key, lipschitz, cotangent, budget))
    z0 = as_floating(z0, "z0")
    gradient.check(solver)
    state, _ = rows(z0, batched)
    on_states = on_rows(f, z0, batched, "the value of f")
    flat, mapped = matrix(state), lambda v: matrix(on_states(v.reshape(state.shape)))
    with jax.default_matmul_precision("highest"):
        traced = jax.make_jaxpr(mapped)(flat)
    _refuse_tracers("what f closes over", traced.consts)
    certified = _certified(lipschitz, flat.shape[0])

    start_key, g_key = jax.random.split(key)
    start = jax.random.normal(start_key, flat.shape, accumulator(flat.dtype))
    if cotangent is None:
        g = jax.random.normal(g_key, flat.shape, flat.dtype)
    else:
        cotangent = as_floating(cotangent, "cotangent")
        check_like(cotangent, z0, "cotangent")
        g = matrix(rows(cotangent, batched)[0])
    z, stats, w = _solved(mapped, flat, g, solver, gradient, budget)
    linear_w, linear_stats = _linear(mapped, z, g, gradient)
    measured = jax.jit(functools.partial(_measure, traced.jaxpr, steps))(traced.consts, z, g, linear_w, start)
    _refuse_tracers("the numbers measured", measured)
    found = _Found(stats, linear_stats, w, g, *measured)
    return _report(jax.device_get(found), certified, type(gradient).__name__, batched)


class _Found(NamedTuple):
    """All that was computed on the device, and is then NumPy's."""

    stats: Stats
    linear_stats: Stats
    w: Vectors  # what the gradient makes of g
    g: Vectors
    residual: Float[Array, " batch"]
    relative_residual: Float[Array, " batch"]
    backward_residual: Float[Array, " batch"]
    jacobian: Measured


def _report(found: Any, certified: Float[np.ndarray, " batch"], gradient: str, batched: bool) -> Diagnosis:
    """The numbers on the host, in float64; NaN where a sample failed."""
    stats, linear_stats, jacobian = found.stats, found.linear_stats, found.jacobian
    epsilon = float(jnp.finfo(found.residual.dtype).eps)
    s = spectrum(jacobian, found.g.astype(float), epsilon)
    failed = stats.status >= Status.DIVERGED
    alive = lambda a, otherwise=np.nan: np.where(failed, otherwise, a)  # noqa: E731
    with np.errstate(divide="ignore", invalid="ignore"):
        certain = (certified < 1) & ~(s.norm > certified * (1 + epsilon**0.5))
        error = found.residual / np.where(certain, 1 - certified, s.smallest)
        condition = s.largest / s.smallest
        gradient_error = np.linalg.norm(found.w.astype(float) - s.reference, axis=1) / np.linalg.norm(s.reference, axis=1)
    numbers = {
        "status": stats.status,
        "steps": stats.steps,
        "residual": alive(found.residual.astype(float)),
        "relative_residual": alive(found.relative_residual.astype(float)),
        "lipschitz": certified,
        "error": alive(error),
        "error_is_bound": certain & ~failed,
        "spectral_radius": alive(s.radius),
        "spectral_radius_residual": alive(s.radius_residual),
        "arnoldi_steps": alive(jacobian.krylov.dimension, 0),
        "jacobian_norm": alive(s.norm),
        "smallest_singular_value": alive(s.smallest),
        "largest_singular_value": alive(s.largest),
        "condition": alive(condition),
        "backward_status": alive(linear_stats.status, stats.status),
        "backward_steps": alive(linear_stats.steps, 0),
        "backward_residual": alive(found.backward_residual.astype(float)),
        "gradient_error": alive(gradient_error),
    }
    if not batched:
        numbers = {name: np.asarray(values[0]) for name, values in numbers.items()}
    return Diagnosis(gradient=gradient, size=found.g.shape[1], epsilon=epsilon, exact=jacobian.jacobian is not None, **numbers)


def _solved(f: Map, z0: Vectors, g: Vectors, solver: Solver, gradient: Gradient, budget: int | None) -> tuple[Vectors, Stats, Vectors]:
    """The solution, and what its gradient makes of `g`: the cotangent of an offset `b` of `f` that is zero."""
    solution = lambda b: gradient.solve(solver, lambda z: f(z) + b, z0, Request(budget))  # noqa: E731
    z, pull, stats = jax.vjp(solution, jnp.zeros_like(z0), has_aux=True)
    return z, stats, pull(g)[0]


def _linear(f: Map, z: Vectors, g: Vectors, gradient: Gradient) -> tuple[Vectors, Stats]:
    """The solution of `(I - J)ᵀ w = g` by the linear solver of the gradient, or by `GMRES`."""
    linear, precision = (gradient.linear, gradient.precision) if isinstance(gradient, Implicit) else (GMRES(), "highest")
    with jax.default_matmul_precision(precision):
        _, pull = jax.vjp(f, z)
        return linear.solve_rows(lambda v: v - pull(v)[0], g)


def _measure(jaxpr: Any, steps: int, constants: list[Any], z: Vectors, g: Vectors, w: Vectors, start: Vectors) -> tuple[Any, ...]:
    """The residual and relative residual of z, the relative residual of `(I - J)ᵀ w = g`, and J; all in at least float32."""
    wide = accumulator(z.dtype)
    f = lambda v: eval_jaxpr(jaxpr, constants, v.astype(z.dtype))[0].astype(wide)  # noqa: E731
    point, g, w = z.astype(wide), g.astype(wide), w.astype(wide)
    with jax.default_matmul_precision("highest"):
        image, product = jax.linearize(f, point)
        transposed = jax.linear_transpose(product, point)
        transpose = lambda v: transposed(v)[0]  # noqa: E731
        residual, left = norm(image - point), norm(g - (w - transpose(w)))
        measured = measure(product, transpose, g, start, steps)
        return residual, relative(residual, norm(image)), relative(left, norm(g)), measured


def _certified(lipschitz: Any, batch: int) -> Float[np.ndarray, " batch"]:
    """One constant per sample; NaN where none is given."""
    constant = np.full(batch, np.nan) if lipschitz is None else np.asarray(lipschitz, float)
    if constant.shape not in ((), (batch,)) or (lipschitz is not None and not np.all(constant >= 0)):
        raise ValueError(f"lipschitz must be one number >= 0, or one for each of the {batch} samples, got {lipschitz}")
    return np.broadcast_to(constant, (batch,))


def _refuse_tracers(where: str, tree: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            f"diagnose looks at numbers, but {where} hold tracers: call it outside of jit, grad, vmap and scan, on the parameters and "
            "inputs in question"
        )
