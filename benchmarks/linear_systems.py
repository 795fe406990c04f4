"""The linear part of `solvers.py`: a batch of adjoint systems `(I - J)ᵀ w = g`, a different J for every sample.

J is a Gaussian matrix scaled to spectral radius 0.9; 32 samples of 64 unknowns in float32, to a relative residual of 1e-5. jax.scipy
knows no batches, so it solves the block system of all samples at once; lineax runs under `vmap`, which the explicit J make possible.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from counted import SIZE, counted, products

from deqflow.implicit import GMRES, BiCGStab, LinearSolver

BATCH = 32
TOLERANCE = 1e-5
RESTART = 20  # of every GMRES
STEPS = 1000

# Unless 64-bit types are enabled, lineax takes every negative coefficient of BiCGStab for a breakdown, so it is also tried with them, on
# the same float32 systems.
X64 = "lineax (x64 on)"

Systems = Callable[[jax.Array, jax.Array], jax.Array]
"""From J and g to w."""


def draw(seed: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    J = rng.standard_normal((BATCH, SIZE, SIZE))
    J *= 0.9 / np.abs(np.linalg.eigvals(J)).max(axis=1)[:, None, None]
    return jnp.asarray(J, jnp.float32), jnp.asarray(rng.standard_normal((BATCH, SIZE)), jnp.float32)


def methods(tag: Callable[[jax.Array], jax.Array]) -> dict[tuple[str, str], Systems]:
    """Every method, by its kind and library; `tag` sees the vectors that are multiplied."""

    def adjoint(J: jax.Array) -> Callable[[jax.Array], jax.Array]:
        return lambda w: w - jnp.einsum("...ji,...j->...i", J, tag(w))

    def ours(solver: LinearSolver) -> Systems:
        return lambda J, g: solver.solve(adjoint(J), g, batched=True).value

    def scipy(solve: Callable[..., Any], **settings: Any) -> Systems:
        return lambda J, g: solve(adjoint(J), g, tol=TOLERANCE, **settings)[0]

    found: dict[tuple[str, str], Systems] = {
        ("GMRES", "deqflow"): ours(GMRES(restart=RESTART, rtol=TOLERANCE, max_steps=STEPS)),
        ("BiCGStab", "deqflow"): ours(BiCGStab(rtol=TOLERANCE, max_steps=STEPS)),
    }
    for method in ("batched", "incremental"):
        settings = {"restart": RESTART, "maxiter": STEPS // RESTART, "solve_method": method}
        found["GMRES", f"jax.scipy ({method})"] = scipy(jax.scipy.sparse.linalg.gmres, **settings)
    found["BiCGStab", "jax.scipy"] = scipy(jax.scipy.sparse.linalg.bicgstab, maxiter=STEPS // 2)
    try:
        import lineax
    except ImportError:
        return found

    def vmapped(solver: Callable[[Any], Any]) -> Systems:
        def one(J: jax.Array, g: jax.Array) -> jax.Array:
            operator = lineax.FunctionLinearOperator(adjoint(J), jax.eval_shape(lambda: g))
            # Its own tolerances are per entry; these make it ours, ‖g - (I - J)ᵀ w‖₂ <= 1e-5 ‖g‖₂.
            return lineax.linear_solve(operator, g, solver(TOLERANCE * jnp.linalg.norm(g)), throw=False).value

        return jax.vmap(one)

    two = {"rtol": 0.0, "norm": lineax.internal.two_norm}
    found["GMRES", "lineax"] = vmapped(lambda goal: lineax.GMRES(atol=goal, restart=RESTART, max_steps=STEPS // RESTART, **two))
    found["BiCGStab", "lineax"] = vmapped(lambda goal: lineax.BiCGStab(atol=goal, max_steps=STEPS // 2, **two))
    found["BiCGStab", X64] = found["BiCGStab", "lineax"]
    return found


def compile_all(tag: Callable[[jax.Array], jax.Array]) -> dict[tuple[str, str], Systems]:
    """The methods, to be compiled when they are first called."""

    def compiled(run: Systems, wide: bool) -> Systems:
        jitted = jax.jit(run)

        def call(J: jax.Array, g: jax.Array) -> jax.Array:
            with jax.enable_x64(wide):
                return jitted(J, g)

        return call

    return {key: compiled(run, wide=key[1] == X64) for key, run in methods(tag).items()}


def residuals(J: jax.Array, g: jax.Array, w: jax.Array) -> np.ndarray:
    """`‖g - (I - J)ᵀ w‖ / ‖g‖` per sample, in float64."""
    a, b, x = (np.asarray(array, np.float64) for array in (J, g, w))
    return np.linalg.norm(b - x + np.einsum("bji,bj->bi", a, x), axis=1) / np.linalg.norm(b, axis=1)


def independent(run: Systems, J: jax.Array, g: jax.Array) -> bool:
    """Whether a sample's solution is bitwise the same when all the others are drawn anew, ten times larger."""
    others = draw(1)
    w = run(J, g)
    for sample in (0, BATCH // 2, BATCH - 1):
        alone = jnp.arange(BATCH) == sample
        changed = run(jnp.where(alone[:, None, None], J, others[0]), jnp.where(alone[:, None], g, 10 * others[1]))
        if not bool(jnp.all(changed[sample] == w[sample])):
            return False
    return True


def measure(repeats: int) -> dict[str, Any]:
    """Times in turns, as the machine's speed drifts; a ratio is the median of those of single turns."""
    J, g = draw(0)
    compiled, tagged = compile_all(lambda w: w), compile_all(counted)
    times: Mapping[tuple[str, str], list[float]] = {key: [] for key in compiled}
    for run in compiled.values():
        jax.block_until_ready(run(J, g))
    for _ in range(repeats):
        for key, run in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(run(J, g))
            times[key].append(time.perf_counter() - began)
    metrics: dict[str, Any] = {}
    for (kind, library), run in compiled.items():
        ratios = [theirs / ours for theirs, ours in zip(times[kind, library], times[kind, "deqflow"], strict=True)]
        metrics[f"{kind}, {library}"] = {
            "milliseconds": round(1e3 * statistics.median(times[kind, library]), 3),
            "time_over_ours": round(statistics.median(ratios), 2),
            "worst_relative_residual": float(residuals(J, g, run(J, g)).max()),
            "independent": independent(run, J, g),
            # A batch goes on until its last sample has converged, and all take part in every product.
            "products_of_the_batch": products(lambda run=tagged[kind, library]: run(J, g)) // BATCH,
        }
    return metrics


def table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"{'(I - J)ᵀ w = g':<32}{'ms':>9}{'over ours':>11}{'worst residual':>16}{'products':>10}  independent"]
    for name, m in metrics.items():
        lines.append(
            f"{name:<32}{m['milliseconds']:>9.2f}{m['time_over_ours']:>11.2f}{m['worst_relative_residual']:>16.1e}"
            f"{m['products_of_the_batch']:>10}  {m['independent']}"
        )
    return "\n".join(lines)
