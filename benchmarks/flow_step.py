"""Time of a training step of a flow beside flowjax, zuko, nflows and normflows, the same architecture and batch, in one run.

python benchmarks/flow_step.py

RealNVP: ten affine couplings of 43 dimensions, alternating halves, each with a perceptron of two hidden layers of 128 and a permutation
behind it; ours are five pairs in a `Repeat`, flowjax's are in a scan, too. Residual flow: eight blocks of 43 dimensions, perceptrons of
two hidden layers of 128 with a Lipschitz constant of 0.9, ActNorm between them, roulette with two exact terms and a geometric law of
1/2. A step is the mean negative log-likelihood of 512 points, its gradient and an update by Adam. Runs take turns in one process, and
the medians over seven processes count. Of the residual flow the spread of the gradient over draws of the estimator is compared, too: the
variance relative to the squared mean, of the gradient with respect to the biases of the same network.
Libraries that are not installed are left out and said to be.
"""

# The other libraries need not be installed.
# pyright: reportMissingImports=false

import argparse
import contextlib
import dataclasses
import importlib.metadata
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import write_result
from flax import nnx

from deqflow.flows import (
    ActNorm,
    AffineCoupling,
    ArnoldiQuadrature,
    Chain,
    Flow,
    LogDet,
    Permutation,
    Repeat,
    Residual,
    RussianRoulette,
    StandardNormal,
    log_det,
    masks,
)
from deqflow.nn import LipschitzMLP

SIZE, BATCH, WIDTH, LAYERS, BLOCKS, BOUND = 43, 512, 128, 10, 8, 0.9
KEPT = int(masks.half(SIZE).sum())
STEPS = 10
X = np.random.default_rng(0).standard_normal((BATCH, SIZE)).astype(np.float32)
# In normflows the first random term always counts: two exact terms there are three here.
ROULETTE = RussianRoulette(exact_terms=3, law="geometric", mean=1.0)

Step = Callable[[], Any]


class MLP(nnx.Module):
    """A perceptron of two hidden layers with ReLU, its last layer zero at the start."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(inputs, WIDTH, rngs=rngs)
        self.second = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.last = nnx.Linear(WIDTH, outputs, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: jax.Array, *, condition: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        del condition, key
        return self.last(nnx.relu(self.second(nnx.relu(self.first(x)))))


def jax_step(flow: Flow) -> Step:
    """A compiled update of the leaves, as the trainer's, the state donated."""
    graph, variables, rest = nnx.split(flow, nnx.Param, ..., graph=False)
    params, structure = jax.tree.flatten(variables)
    optimizer = optax.adam(1e-3)
    x, state, count = jnp.asarray(X), (params, optimizer.init(params)), 0

    def update(state: Any, key: jax.Array) -> Any:
        params, moments = state
        flow = lambda p: nnx.merge(graph, jax.tree.unflatten(structure, p), rest)  # noqa: E731
        gradient = jax.grad(lambda p: -flow(p).log_prob(x, key=key).mean())(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    update = jax.jit(update, donate_argnums=0)

    def step() -> None:
        nonlocal state, count
        count += 1
        state = update(state, jax.random.key(count))
        jax.block_until_ready(state)

    return step


def ours_realnvp() -> Step:
    order = np.random.default_rng(0).permutation(SIZE)

    def pair(rngs: nnx.Rngs) -> Chain:
        layers: list[Any] = []
        for mask in (masks.half(SIZE), ~masks.half(SIZE)):
            kept = int(mask.sum())
            layers += [AffineCoupling(mask, MLP(kept, 2 * (SIZE - kept), rngs)), Permutation(order)]
        return Chain(layers)

    return jax_step(Flow(StandardNormal((SIZE,)), Repeat(pair, LAYERS // 2, remat=False, rngs=nnx.Rngs(0))))


def ours_residual(estimator: LogDet) -> Step:
    rngs = nnx.Rngs(0)
    layers: list[Any] = []
    for _ in range(BLOCKS):
        g = LipschitzMLP(SIZE, width=WIDTH, depth=2, bound=BOUND, activation="lipswish", rngs=rngs)
        layers += [Residual(g, (SIZE,), log_det=estimator), ActNorm((SIZE,))]
    flow = Flow(StandardNormal((SIZE,)), Chain(layers))
    flow.train()
    return jax_step(flow)


def flowjax_realnvp() -> Step:
    import equinox as eqx
    from flowjax.bijections import Affine
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow
    from paramax import NonTrainable, unwrap

    flow = coupling_flow(
        jax.random.key(0), base_dist=Normal(jnp.zeros(SIZE)), transformer=Affine(), flow_layers=LAYERS, nn_width=WIDTH, nn_depth=2
    )
    params, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable))
    optimizer = optax.adam(1e-3)
    x, state = jnp.asarray(X), (params, optimizer.init(params))

    def update(state: Any) -> Any:
        params, moments = state
        gradient = jax.grad(lambda p: -unwrap(eqx.combine(p, static)).log_prob(x).mean())(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    update = jax.jit(update, donate_argnums=0)

    def step() -> None:
        nonlocal state
        state = update(state)
        jax.block_until_ready(state)

    return step


def torch_step(model: Any, log_prob: Callable[[Any], Any]) -> Step:
    import torch

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    x = torch.from_numpy(X)

    def step() -> None:
        optimizer.zero_grad()
        (-log_prob(x).mean()).backward()
        optimizer.step()

    return step


def zuko_realnvp() -> Step:
    import zuko

    flow = zuko.flows.NICE(SIZE, transforms=LAYERS, randmask=False, hidden_features=(WIDTH, WIDTH))
    return torch_step(flow, lambda x: flow().log_prob(x))


def nflows_realnvp() -> Step:
    import torch
    from nflows.distributions import StandardNormal as Base
    from nflows.flows import Flow as Whole
    from nflows.nn.nets import MLP as Net
    from nflows.transforms import AffineCouplingTransform, CompositeTransform, RandomPermutation

    class Conditioner(torch.nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.net = Net([inputs], [outputs], [WIDTH, WIDTH])

        def forward(self, x: Any, context: Any = None) -> Any:
            del context
            return self.net(x)

    transforms = []
    for index in range(LAYERS):
        mask = torch.as_tensor(masks.half(SIZE) if index % 2 == 0 else ~masks.half(SIZE)).float()
        transforms += [AffineCouplingTransform(1 - mask, Conditioner), RandomPermutation(SIZE)]
    flow = Whole(CompositeTransform(transforms), Base([SIZE]))
    return torch_step(flow, flow.log_prob)


def normflows_realnvp() -> Step:
    import normflows as nf

    flows = []
    for _ in range(LAYERS):
        net = nf.nets.MLP([SIZE - SIZE // 2, WIDTH, WIDTH, 2 * (SIZE // 2)], init_zeros=True)
        flows += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(SIZE)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(SIZE, trainable=False), flows)
    return torch_step(model, model.log_prob)


def normflows_residual() -> Step:
    import normflows as nf

    flows = []
    for _ in range(BLOCKS):
        net = nf.nets.LipschitzMLP([SIZE, WIDTH, WIDTH, SIZE], lipschitz_const=BOUND ** (1 / 3), init_zeros=False)
        flows += [nf.flows.Residual(net, reduce_memory=True), nf.flows.ActNorm(SIZE)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(SIZE, trainable=False), flows)
    model.train()
    return torch_step(model, model.log_prob)


def times(makers: dict[str, Callable[[], Step]], turns: int) -> dict[str, float]:
    """The median time of a step of each, in seconds; libraries that are missing are left out."""
    steps, seconds = {}, {}
    for name, make in makers.items():
        try:
            steps[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}")
    for step in steps.values():
        for _ in range(3):
            step()
    for _ in range(turns):
        for name, step in steps.items():
            time.sleep(0.1)  # until the threads of the library before have come to rest
            step()
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            seconds.setdefault(name, []).append((time.perf_counter() - start) / STEPS)
    return {name: statistics.median(values) for name, values in seconds.items()}


def weights() -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels of the same norm and biases of a perceptron whose Lipschitz constant is at most 0.9."""
    rng = np.random.default_rng(1)
    layers = []
    for inputs, outputs in [(SIZE, WIDTH), (WIDTH, WIDTH), (WIDTH, SIZE)]:
        kernel = rng.standard_normal((inputs, outputs))
        kernel *= BOUND ** (1 / 3) / np.linalg.norm(kernel, 2)
        layers.append((kernel.astype(np.float32), (0.3 * rng.standard_normal(outputs)).astype(np.float32)))
    return layers


def spread(draws: np.ndarray) -> float:
    """The variance of a vector over the draws, relative to its squared mean."""
    return float(draws.var(0, ddof=1).sum() / (draws.mean(0) ** 2).sum())


def our_spread(estimator: LogDet, count: int = 400) -> float:
    kernels, biases = zip(*weights(), strict=True)
    x = jnp.asarray(X)

    def mean(biases: Any, key: jax.Array) -> jax.Array:
        def g(x: jax.Array) -> jax.Array:
            for kernel, bias in zip(kernels, biases, strict=True):
                x = (x * nnx.sigmoid(x) / 1.1) @ kernel + bias
            return x

        return log_det(g, x, estimator, key).value.mean()

    slope = jax.jit(jax.grad(mean))
    start = [jnp.asarray(bias) for bias in biases]
    # The last bias moves the value of g alone, and has no part in the log-determinant.
    return spread(np.stack([np.concatenate(jax.device_get(slope(start, jax.random.key(k)))[:-1]) for k in range(count)]))


def normflows_spread(count: int = 400) -> float:
    import normflows as nf
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernels = [torch.from_numpy(kernel) for kernel, _ in weights()]
            self.biases = torch.nn.ParameterList([torch.nn.Parameter(torch.from_numpy(bias)) for _, bias in weights()])

        def forward(self, x: Any) -> Any:
            for kernel, bias in zip(self.kernels, self.biases, strict=True):
                x = (x * torch.sigmoid(x) / 1.1) @ kernel + bias
            return x

    np.random.seed(0)  # noqa: NPY002  (what the library draws from)
    torch.manual_seed(0)
    net = Net()
    block = nf.flows.Residual(net, reverse=False, reduce_memory=True)
    block.train()
    x, draws = torch.from_numpy(X), []
    for _ in range(count):
        net.zero_grad()
        block.forward(x)[1].mean().backward()
        draws.append(np.concatenate([bias.grad.numpy().copy() for bias in list(net.biases)[:-1]]))
    return spread(np.stack(draws))


def measure(turns: int) -> dict[str, dict[str, float]]:
    """Seconds per step, by kind of flow and library."""
    realnvp = {
        "deqflow": ours_realnvp,
        "flowjax": flowjax_realnvp,
        "zuko": zuko_realnvp,
        "nflows": nflows_realnvp,
        "normflows": normflows_realnvp,
    }
    residual = {
        "deqflow": lambda: ours_residual(ROULETTE),
        "deqflow, Neumann gradient": lambda: ours_residual(dataclasses.replace(ROULETTE, linear=None)),
        "deqflow, 4 Arnoldi steps": lambda: ours_residual(ArnoldiQuadrature(steps=4)),
        "normflows": normflows_residual,
    }
    return {"realnvp": times(realnvp, turns), "residual": times(residual, turns)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--processes", type=int, default=7)
    arguments = parser.parse_args()
    began = time.perf_counter()
    # Where one process has its buffers decides up to a fifth, for as long as it lives.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = list(pool.map(measure, [arguments.turns] * arguments.processes))
    metrics: dict[str, Any] = {}
    for kind in runs[0]:
        seconds = [run[kind] for run in runs]
        others = [name for name in seconds[0] if name != "deqflow"]
        ratios = {name: sorted(run["deqflow"] / run[name] for run in seconds) for name in others}
        metrics[kind] = {
            "milliseconds": {name: round(1e3 * statistics.median(run[name] for run in seconds), 2) for name in seconds[0]},
            "ratio": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
            "smallest and largest ratio": {name: [round(values[0], 3), round(values[-1], 3)] for name, values in ratios.items()},
        }
    estimators = {
        "deqflow": ROULETTE,
        "deqflow, Neumann gradient": dataclasses.replace(ROULETTE, linear=None),
        "deqflow, 4 Arnoldi steps": ArnoldiQuadrature(steps=4),
    }
    spreads = {name: our_spread(estimator) for name, estimator in estimators.items()}
    with contextlib.suppress(ImportError):
        spreads["normflows"] = normflows_spread()
    metrics["gradient_variance"] = {name: round(value, 4) for name, value in spreads.items()}
    found = {}
    for package in ("flowjax", "zuko", "nflows", "normflows", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    metrics["peers"] = found
    expected = {
        "realnvp": "ratio at most 1.0 to flowjax, 0.6 to zuko, nflows and normflows",
        "residual": "ratio at most 0.7 to normflows",
        "gradient_variance": "no more than normflows'",
    }
    write_result("flow_step", metrics, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
