"""Simulation-based inference with conditional flows: two problems whose posterior is known, by neural posterior estimation.

python benchmarks/sbi.py

A flow `q(θ | x)` is trained on 100,000 pairs of parameters, drawn from the prior, and simulated data. Then it is compared with the exact
posterior: the mean Kullback-Leibler divergence over new pairs, and for five observations the accuracy of a classifier that tells samples
of both apart (C2ST; 0.5 cannot, 1 always), by scikit-learn with the network and folds of the benchmark that the two moons are from.
Calibration can be had without the exact posterior: ranks of the true parameters among samples, and how often sets of highest density
hold them.

Papamakarios and Murray, "Fast ε-free inference of simulation models with Bayesian conditional density estimation", 2016; Lueckmann, Boelts,
Greenberg, Gonçalves and Macke, "Benchmarking simulation-based inference", 2021, for the two moons and the C2ST; Talts, Betancourt, Simpson,
Vehtari and Gelman, "Validating Bayesian inference algorithms with simulation-based calibration", 2018, for the ranks.
"""

import abc
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from common import RESULTS, write_result
from flax import nnx
from scipy import stats
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from deqflow.flows import ActNorm, Affine, AffineCoupling, Bijector, Chain, Flow, Logit, ResidualMLP, SplineCoupling, StandardNormal, masks

SIMULATIONS, STEPS, BATCH, LEARNING_RATE = 100_000, 6000, 512, 2e-3
OBSERVATIONS, SAMPLES = 5, 10_000  # of the classifier
PAIRS, RANKS = 2000, 255  # of the calibration: true parameters, and samples beside each


class Problem(abc.ABC):
    """A prior, a simulator and, to compare with, the exact posterior. All draws are rows."""

    dimension: int
    data: int

    @abc.abstractmethod
    def simulate(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Parameters from the prior, and data simulated with each."""

    @abc.abstractmethod
    def log_posterior(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """`log p(θ | x)` row by row."""

    @abc.abstractmethod
    def posterior(self, rng: np.random.Generator, x: np.ndarray, n: int) -> np.ndarray:
        """`n` samples given one observation."""

    @abc.abstractmethod
    def layers(self, rngs: nnx.Rngs) -> list[Bijector]:
        """Of the flow, from the parameters to the latent."""


class LinearGaussian(Problem):
    """`θ ~ N(0, I)` in four dimensions and `x = A θ + n / 2`, six numbers; the posterior is `N(4 S Aᵀ x, S)` with `S = (I + 4 AᵀA)⁻¹`."""

    dimension, data, precision = 4, 6, 4.0

    def __init__(self) -> None:
        self.A = np.random.default_rng(0).standard_normal((self.data, self.dimension)) / 2
        self.covariance = np.linalg.inv(np.eye(self.dimension) + self.precision * self.A.T @ self.A)

    def simulate(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        theta = rng.standard_normal((n, self.dimension))
        return theta, theta @ self.A.T + rng.standard_normal((n, self.data)) / np.sqrt(self.precision)

    def mean(self, x: np.ndarray) -> np.ndarray:
        return self.precision * x @ self.A @ self.covariance

    def whitened(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Parameters in units in which the posterior is standard normal."""
        return (theta - self.mean(x)) @ np.linalg.inv(np.linalg.cholesky(self.covariance)).T

    def log_posterior(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        return stats.norm.logpdf(self.whitened(theta, x)).sum(-1) - np.linalg.slogdet(self.covariance)[1] / 2

    def posterior(self, rng: np.random.Generator, x: np.ndarray, n: int) -> np.ndarray:
        return rng.multivariate_normal(self.mean(x), self.covariance, n)

    def layers(self, rngs: nnx.Rngs) -> list[Bijector]:
        def coupling(mask: np.ndarray) -> Bijector:
            conditioner = ResidualMLP(2, 4, width=64, depth=1, condition_size=self.data, rngs=rngs)
            return AffineCoupling(mask, conditioner)

        half, even = masks.half(4), masks.alternating(4)
        return [ActNorm((4,)), *map(coupling, (half, ~half, even, ~even)), ActNorm((4,))]


class TwoMoons(Problem):
    """`θ` uniform on `[-1, 1]²` and `x = (r cos α + 1/4 - |θ₁ + θ₂| / √2, r sin α + (θ₂ - θ₁) / √2)`: two crescents, one the other's image.

    `r ~ N(0.1, 0.01²)`, and α is uniform on `[-π/2, π/2]`. Given x, each draw of r and α is that of two θ, mirror images in the line
    `θ₁ + θ₂ = 0`, or of none; the map from `(r cos α, r sin α)` keeps areas, so that draws with a θ in the square are the posterior.
    """

    dimension, data = 2, 2

    def _noise(self, rng: np.random.Generator, n: int) -> np.ndarray:
        r, angle = rng.normal(0.1, 0.01, n), rng.uniform(-np.pi / 2, np.pi / 2, n)
        return np.stack([r * np.cos(angle) + 0.25, r * np.sin(angle)], -1)

    def _location(self, theta: np.ndarray) -> np.ndarray:
        return np.stack([-np.abs(theta.sum(-1)), theta[..., 1] - theta[..., 0]], -1) / np.sqrt(2)

    def _solve(self, location: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The θ with `θ₁ + θ₂ >= 0` at a location, and whether it and its mirror image are in the square."""
        across, along = -location[..., 0], location[..., 1]
        theta = np.stack([across - along, across + along], -1) / np.sqrt(2)
        return theta, (across >= 0) & (np.abs(theta) <= 1).all(-1)

    def simulate(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        theta = rng.uniform(-1, 1, (n, 2))
        return theta, self._location(theta) + self._noise(rng, n)

    def log_posterior(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """By Bayes' rule; the evidence is an average over draws of the noise, of which one in a hundred of its value is left."""
        u = x - self._location(theta) - (0.25, 0.0)
        r = np.hypot(*u.T)
        likelihood = np.where(u[:, 0] > 0, stats.norm.logpdf(r, 0.1, 0.01) - np.log(np.pi * r), -np.inf)
        noise = self._noise(np.random.default_rng(0), 10_000)
        # the prior's 1/4 stands on both sides
        evidence = np.array([2 * self._solve(row - noise)[1].mean() for row in x])
        return likelihood - np.log(evidence)

    def posterior(self, rng: np.random.Generator, x: np.ndarray, n: int) -> np.ndarray:
        kept: list[np.ndarray] = []
        while sum(map(len, kept)) < n:
            theta, inside = self._solve(x - self._noise(rng, n))
            theta = np.where(rng.integers(2, size=(n, 1)) == 0, theta, -theta[:, ::-1])
            kept.append(theta[inside])
        return np.concatenate(kept)[:n]

    def layers(self, rngs: nnx.Rngs) -> list[Bijector]:
        def coupling(mask: np.ndarray) -> Bijector:
            conditioner = ResidualMLP(1, 3 * 16 - 1, width=128, depth=2, condition_size=self.data, rngs=rngs)
            return SplineCoupling(mask, conditioner, bins=16)

        # No sample leaves the square, but for twice the margin.
        square = [Affine((2,), scale=0.5, shift=0.5), Logit((2,), margin=1e-5)]
        return [*square, ActNorm((2,)), *map(coupling, [masks.half(2), ~masks.half(2)] * 3), ActNorm((2,))]


class Posterior:
    """A conditional flow trained on simulations: `q(θ | x)`, minimal in `E[-log q(θ | x)]` where it is the posterior."""

    def __init__(self, problem: Problem, *, seed: int = 0) -> None:
        theta, x = (jnp.asarray(rows, jnp.float32) for rows in problem.simulate(np.random.default_rng(seed), SIMULATIONS))
        self.centre, self.spread = x.mean(0), x.std(0)
        c = self._standard(x)
        chain = Chain(problem.layers(nnx.Rngs(seed)))
        chain.initialize(theta, condition=c)
        flow = Flow(StandardNormal((problem.dimension,)), chain)
        graph, params = nnx.split(flow)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS)))

        @jax.jit
        def step(params: Any, state: Any, key: jax.Array) -> Any:
            rows = jax.random.randint(key, (BATCH,), 0, len(theta))

            def loss(params: Any) -> jax.Array:
                return -nnx.merge(graph, params).log_prob(theta[rows], condition=c[rows]).mean()

            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        state = optimizer.init(params)
        for i, key in enumerate(jax.random.split(jax.random.key(seed), STEPS)):
            params, state, value = step(params, state, key)
            if i % 1000 == 999:
                print(f"{type(problem).__name__}: step {i + 1}, loss {value:.3f}", flush=True)
        self._log_prob = jax.jit(lambda theta, c: nnx.merge(graph, params).log_prob(theta, condition=c))
        self._sample = jax.jit(lambda key, c: nnx.merge(graph, params).sample(key, len(c), condition=c))

    def log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.asarray(self._log_prob(jnp.asarray(theta, jnp.float32), self._standard(x)))

    def sample(self, seed: int, x: np.ndarray) -> np.ndarray:
        """One sample for each row of x."""
        return np.asarray(self._sample(jax.random.key(seed), self._standard(x)))

    def _standard(self, x: Any) -> jax.Array:
        return (jnp.asarray(x, jnp.float32) - self.centre) / self.spread


def c2st(p: np.ndarray, q: np.ndarray) -> float:
    """How often a classifier, trained on other samples of both, is right."""
    x = (np.concatenate([p, q]) - p.mean(0)) / p.std(0)
    y = np.repeat([0, 1], [len(p), len(q)])
    width = 10 * x.shape[1]
    network = MLPClassifier((width, width), max_iter=1000, random_state=0)
    with threadpool_limits(1):  # products as small as these only wait for other threads
        return float(cross_val_score(network, x, y, cv=KFold(5, shuffle=True, random_state=0), scoring="accuracy").mean())


def calibration(problem: Problem, q: Posterior) -> dict[str, Any]:
    """Ranks of true parameters among samples, uniform on `0 .. RANKS` if calibrated, and the level of the sets that just hold them."""
    theta, x = problem.simulate(np.random.default_rng(2), PAIRS)
    many = np.repeat(x, RANKS, axis=0)
    samples = q.sample(3, many)
    ranks = (samples.reshape(PAIRS, RANKS, -1) < theta[:, None]).sum(1)
    levels = (q.log_prob(samples, many).reshape(PAIRS, RANKS) > q.log_prob(theta, x)[:, None]).mean(1)
    return {"ranks": ranks, "levels": levels}


def study(problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is reported, and what is drawn."""
    began = time.perf_counter()
    q = Posterior(problem)
    row: dict[str, Any] = {"train_seconds": round(time.perf_counter() - began, 1)}
    theta, x = problem.simulate(np.random.default_rng(1), PAIRS)
    differences = problem.log_posterior(theta, x) - q.log_prob(theta, x)
    row |= {"kl": float(differences.mean()), "kl_standard_error": float(differences.std(ddof=1) / np.sqrt(PAIRS))}
    rng = np.random.default_rng(4)
    pairs = [(problem.posterior(rng, seen, SAMPLES), q.sample(i, np.tile(seen, (SAMPLES, 1)))) for i, seen in enumerate(x[:OBSERVATIONS])]
    scores = [c2st(*pair) for pair in pairs]
    row |= {"c2st": float(np.mean(scores)), "c2st_largest": max(scores)}
    if isinstance(problem, LinearGaussian):
        white = [problem.whitened(sample, seen) for seen, (_, sample) in zip(x, pairs, strict=False)]
        # The mean in standard deviations, and how far the covariance is from the identity.
        row["mean_error"] = float(max(np.linalg.norm(w.mean(0)) for w in white))
        row["covariance_error"] = float(max(np.linalg.norm(np.cov(w.T) - np.eye(problem.dimension), 2) for w in white))
    seen = calibration(problem, q)
    counts = [np.histogram(r, 16, (0, RANKS + 1))[0] for r in seen["ranks"].T]
    row["rank_p_values"] = [float(stats.chisquare(c).pvalue) for c in counts]
    row["coverage"] = {f"{level:.0%}": float((seen["levels"] <= level).mean()) for level in (0.5, 0.9)}
    return row, {"pairs": pairs[0], "counts": counts, "levels": seen["levels"]}


def draw(drawn: dict[str, dict[str, Any]]) -> None:
    figure, axes = plt.subplots(len(drawn), 4, figsize=(12, 3 * len(drawn)), layout="constrained")
    for row, (name, of) in zip(axes, drawn.items(), strict=True):
        low, high = np.quantile(of["pairs"][0][:, :2], (0.001, 0.999), axis=0)
        margin = 0.15 * (high - low).max()
        for axis, samples, title in zip(row, of["pairs"], ("exact posterior", "flow"), strict=False):
            axis.plot(*samples[:4000, :2].T, ".", ms=2, mew=0, alpha=0.5, color="black", rasterized=True)
            axis.set(title=f"{name}, {title}", xlabel="$θ_1$", xlim=(low[0] - margin, high[0] + margin))
            axis.set(ylim=(low[1] - margin, high[1] + margin))
        row[0].set_ylabel("$θ_2$")
        for index, counts in enumerate(of["counts"]):
            row[2].stairs(counts, np.linspace(0, RANKS + 1, len(counts) + 1), label=f"$θ_{index + 1}$")
        expected = PAIRS / len(of["counts"][0])
        row[2].axhspan(*stats.binom(PAIRS, expected / PAIRS).interval(0.99), color="0.9", zorder=0)
        row[2].set(title="ranks of the true parameters", xlabel=f"rank among {RANKS} samples", ylabel=f"of {PAIRS}", ylim=(0, 2 * expected))
        row[2].legend(ncols=4, fontsize="small", handlelength=1)
        row[3].plot([0, 1], [0, 1], color="0.7", lw=1)
        row[3].plot(np.sort(of["levels"]), np.linspace(0, 1, PAIRS), color="black")
        row[3].set(title="coverage", xlabel="nominal", ylabel="observed", aspect="equal")
    figure.savefig(RESULTS / "sbi.png", dpi=150)
    plt.close(figure)


def main() -> None:
    began = time.perf_counter()
    studies = {"linear Gaussian": study(LinearGaussian()), "two moons": study(TwoMoons())}
    draw({name: drawn for name, (_, drawn) in studies.items()})
    expected = {
        "linear Gaussian": {"kl": "<= 0.02", "c2st": "<= 0.55"},
        "two moons": {"c2st": "<= 0.6"},
        "both": "rank p-values >= 0.001, coverage within 0.03",
    }
    write_result("sbi", {name: row for name, (row, _) in studies.items()}, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
