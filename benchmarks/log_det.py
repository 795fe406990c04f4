"""Log-determinant estimators: error at equal products by class of Jacobian, variance beside it, and time.

python benchmarks/log_det.py [CLASS ...]    # of these classes alone; what the result holds of others and of time is kept

At fixed probes, 16 products and norm 0.98, every estimator's `vᵀ log(I + J) v` is compared with that of the eigenvalues in float64; the
error is the root mean square over probes and samples. Hutchinson's own scatter, which all share, stands apart. Times are of value and
gradient of a batch of 128, medians of alternating runs, each estimator with its own solution for the gradient.

The trained Jacobians are those of a residual flow of four blocks with ELU, whose norms are limited to 0.97, at test digits after 2000 steps
on the handwritten digits; the norm there is what training has made of it.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from common import RESULTS, write_result
from flax import nnx

from deqflow.data.digits import Digits
from deqflow.flows import ArnoldiQuadrature, PowerSeries, Repeat, Residual, log_det
from deqflow.models.residual_flow import ResidualFlow
from deqflow.nn import LipschitzMLP

N, NORM, SAMPLES, PROBES = 64, 0.98, 16, 8
PRODUCTS = (2, 4, 8, 16)
STEPS, BATCH = 2000, 128  # of the training


def trained() -> np.ndarray:
    """Jacobians of every block of a trained residual flow at `SAMPLES` digits that it was not trained on."""
    arnoldi = ArnoldiQuadrature(steps=4)
    sizes = {"blocks": 4, "width": 128, "depth": 2, "bound": 0.97, "activation": "elu"}
    model = ResidualFlow(**sizes, log_det=arnoldi, input_shape=(8, 8, 1), levels=17, rngs=nnx.Rngs(0))
    images = Digits(batch_size=BATCH).split("train")
    x = jnp.asarray(images.gather(np.arange(len(images)))["x"])
    model.initialize(x[:512], jax.random.key(0))
    graph, params = nnx.split(model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, STEPS)))

    @jax.jit
    def step(params: Any, state: Any, key: Any) -> Any:
        rows, noise = jax.random.split(key)
        batch = x[jax.random.randint(rows, (BATCH,), 0, len(x))]
        loss = lambda params: -nnx.merge(graph, params).log_prob(batch, key=noise).mean() / N  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for i, key in enumerate(jax.random.split(jax.random.key(1), STEPS)):
        params, state, value = step(params, state, key)
        if i % 200 == 199:
            print(f"trained: step {i + 1}, {float(value):.3f} nats per dimension", flush=True)
    chain: Any = nnx.merge(graph, params).flow.bijector
    blocks = [block for layer in chain.layers for block in (layer.blocks() if isinstance(layer, Repeat) else [layer])]
    h = jnp.asarray(Digits().split("test").gather(np.arange(SAMPLES))["x"]).reshape(SAMPLES, N)
    made = []
    for block in blocks:
        if isinstance(block, Residual):
            network: Any = block.g
            g = network.prepare()
            made.append(np.asarray(jax.vmap(jax.jacobian(lambda row, g=g: g(row[None])[0]))(h), float))
        h = block.forward_and_log_det(h, key=jax.random.key(2)).value
    return np.concatenate(made)


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


def errors(A: np.ndarray) -> dict[str, Any]:
    v = np.random.default_rng(1).choice([-1.0, 1.0], (PROBES, len(A), N))
    want = logarithms(A, v)
    rows: dict[str, Any] = {
        "median_norm": float(np.median(np.linalg.norm(A, 2, axis=(1, 2)))),
        "hutchinson_standard_deviation": float(want.std(0, ddof=1).mean()),
    }
    for name, dtype in (("float32", jnp.float32), ("float64", jnp.float64)):
        tiled = jnp.asarray(np.tile(A, (PROBES, 1, 1)), dtype)
        probes = jnp.asarray(v.reshape(-1, N), dtype)

        def error(estimator: Any, tiled: Any = tiled, probes: Any = probes) -> float:
            def moment(v: Any) -> Any:
                transpose = lambda w: jnp.einsum("bji,bj->bi", tiled, w, precision="highest")  # noqa: E731
                return estimator.moment(transpose, v, jax.random.key(0), 1).value

            value = np.asarray(jax.jit(moment)(probes), float).reshape(PROBES, len(A))
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
    figure, axes = plt.subplots(1, len(results), figsize=(3.3 * len(results), 3.2), sharey=True, layout="constrained")
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classes", nargs="*", help="classes of Jacobians to measure anew; all, and times, by default")
    chosen = parser.parse_args().classes
    began = time.perf_counter()
    kept = json.loads((RESULTS / "log_det.json").read_text())["metrics"] if chosen else {}
    timed = kept["seconds"] if chosen else seconds()
    known = {kind: jacobians(kind) for kind in ("symmetric", "gaussian", "orthogonal") if not chosen or kind in chosen}
    if not chosen or "trained" in chosen:
        known["trained"] = trained()
    jax.config.update("jax_enable_x64", True)
    results = {**kept.get("errors", {}), **{kind: errors(A) for kind, A in known.items()}}
    draw(results)
    expected = {
        "errors": "at 16 products arnoldi <= series, symmetric <= series / 10",
        "seconds": "arnoldi <= 1.5 series",
    }
    write_result("log_det", {"errors": results, "seconds": timed}, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
