"""Log-determinant estimators: error at equal products by class of Jacobian, variance beside it, and time.

python benchmarks/log_det.py

At fixed probes, 16 products and norm 0.98, every estimator's `vᵀ log(I + J) v` is compared with that of the eigenvalues in float64; the
error is the root mean square over probes and samples. Hutchinson's own scatter, which all share, stands apart. Times are of value and
gradient of a batch of 128, medians of alternating runs, each estimator with its own solution for the gradient.
"""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from common import RESULTS, write_result
from flax import nnx

from deqflow.flows import ArnoldiQuadrature, PowerSeries, log_det
from deqflow.nn import LipschitzMLP

N, NORM, SAMPLES, PROBES = 64, 0.98, 16, 8
PRODUCTS = (2, 4, 8, 16)


def jacobians(kind: str) -> np.ndarray:
    """`SAMPLES` matrices of spectral norm `NORM`."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(SAMPLES):
        a = rng.standard_normal((N, N))
        a = a + a.T if kind == "symmetric" else np.linalg.qr(a)[0] if kind == "orthogonal" else a
        made.append(NORM * a / np.linalg.norm(a, 2))
    return np.stack(made)


def logarithms(A: np.ndarray, v: np.ndarray) -> np.ndarray:
    """`vᵀ log(I + Aᵀ) v` for every sample and probe, by eigenvectors in float64."""
    out = np.empty(v.shape[:2])
    for i, a in enumerate(A):
        values, vectors = np.linalg.eig(np.eye(N) + a.T)
        left, right = v[:, i] @ vectors, np.linalg.solve(vectors, v[:, i].T)
        out[:, i] = np.real((left * np.log(values)) @ right).diagonal()
    return out


def errors(kind: str) -> dict[str, Any]:
    A = jacobians(kind)
    v = np.random.default_rng(1).choice([-1.0, 1.0], (PROBES, SAMPLES, N))
    want = logarithms(A, v)
    rows: dict[str, Any] = {"hutchinson_standard_deviation": float(want.std(0, ddof=1).mean())}
    for name, dtype in (("float32", jnp.float32), ("float64", jnp.float64)):
        tiled = jnp.asarray(np.tile(A, (PROBES, 1, 1)), dtype)
        probes = jnp.asarray(v.reshape(-1, N), dtype)

        def error(estimator: Any, tiled: Any = tiled, probes: Any = probes) -> float:
            def moment(v: Any) -> Any:
                transpose = lambda w: jnp.einsum("bji,bj->bi", tiled, w, precision="highest")  # noqa: E731
                return estimator.moment(transpose, v, jax.random.key(0), 1).value

            value = np.asarray(jax.jit(moment)(probes), float).reshape(PROBES, SAMPLES)
            return float(np.sqrt(np.mean((value - want) ** 2)))

        for m in PRODUCTS:
            arnoldi, series = error(ArnoldiQuadrature(steps=m, nodes=32)), error(PowerSeries(terms=m))
            rows[f"{name}, {m} products"] = {"arnoldi": arnoldi, "series": series, "ratio": arnoldi / series}
    return rows


def seconds(repeats: int = 15) -> dict[str, Any]:
    """Of value and gradient for a perceptron of 64 dimensions."""
    g = LipschitzMLP(N, width=128, depth=2, bound=NORM, activation="lipswish", rngs=nnx.Rngs(0))
    graph, params = nnx.split(g)
    x = jax.random.normal(jax.random.key(0), (128, N), jnp.float32)
    rows = {}
    for m in PRODUCTS:
        runs, times = {}, {}
        for name, estimator in {"arnoldi": ArnoldiQuadrature(steps=m), "series": PowerSeries(terms=m, linear=None)}.items():

            def total(params: Any, x: Any, key: Any, estimator: Any = estimator) -> Any:
                return log_det(nnx.merge(graph, params).prepare(), x, estimator, key).value.sum()

            runs[name] = jax.jit(jax.value_and_grad(total, (0, 1)))
            times[name] = []
        for _ in range(repeats + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                jax.block_until_ready(run(params, x, jax.random.key(1)))
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        rows[f"{m} products"] = {**medians, "ratio": medians["arnoldi"] / medians["series"]}
    return rows


def draw(results: dict[str, Any]) -> None:
    figure, axes = plt.subplots(1, len(results), figsize=(10, 3.2), sharey=True, layout="constrained")
    for axis, (kind, rows) in zip(axes, results.items(), strict=True):
        for name, style in (("arnoldi", "o-"), ("series", "s--")):
            axis.plot(PRODUCTS, [rows[f"float64, {m} products"][name] for m in PRODUCTS], style, label=name)
        axis.axhline(rows["hutchinson_standard_deviation"], color="gray", lw=1, ls=":", label="scatter of one probe")
        axis.set_xscale("log", base=2)
        axis.set(yscale="log", title=kind, xlabel="products with Jᵀ", xticks=PRODUCTS, xticklabels=PRODUCTS)
    axes[0].set_ylabel("error of vᵀ log(I + J) v, nats")
    axes[0].legend()
    figure.savefig(RESULTS / "log_det.png", dpi=150)


def main() -> None:
    began = time.perf_counter()
    timed = seconds()
    jax.config.update("jax_enable_x64", True)
    results = {kind: errors(kind) for kind in ("symmetric", "gaussian", "orthogonal")}
    draw(results)
    expected = {
        "errors": "at 16 products arnoldi <= series, symmetric <= series / 10",
        "seconds": "arnoldi <= 1.5 series",
    }
    write_result("log_det", {"errors": results, "seconds": timed}, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
