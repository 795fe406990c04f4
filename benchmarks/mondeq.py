"""What a trained monotone equilibrium network promises, checked on test images: certificate, splittings, starts.

python benchmarks/mnist.py mnist_mondeq --runs runs
python benchmarks/mondeq.py runs/mnist_mondeq

All in float64, on the weights as they were trained in float32, and by plain iteration, whose convergence is what is promised.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from common import write_result
from flax import nnx

from deqflow.deq import DEQ, MonotoneCell
from deqflow.implicit import GMRES, Picard
from deqflow.models.deq_classifier import DEQClassifier
from deqflow.train.saved import SavedRun

SPLITTINGS = ("forward_backward", "peaceman_rachford")


def smallest_eigenvalue(operator, shape) -> float:
    """Of the symmetric part of `I - W`, from the dense matrix of W on states of this shape."""
    weight = jnp.asarray(np.asarray(operator.weight()), jnp.float64)
    zero = jnp.zeros(shape, jnp.float64)
    W = np.asarray(jax.jacobian(lambda z: operator.apply(weight, z[None])[0])(zero)).reshape(zero.size, zero.size)
    return float(np.linalg.eigvalsh(np.eye(len(W)) - (W + W.T) / 2)[0])


def distance(a, b) -> float:
    """The largest relative distance of two batches of states, over their samples."""
    a, b = (np.asarray(v).reshape(len(v), -1) for v in (a, b))
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--images", type=int, default=32)
    arguments = parser.parse_args()

    began = time.perf_counter()
    saved = SavedRun.open(arguments.run)
    model, test = saved.model(), saved.assembly.source.split("test")
    images = jnp.asarray(test.gather(np.arange(arguments.images))["x"])
    assert isinstance(model, DEQClassifier)
    cell, x = model.deq.cell, model.stem(images)
    assert isinstance(cell, MonotoneCell)
    certificate, bounds = cell.operator.monotonicity(), [float(norm) for norm in cell.operator.norms()]

    with jax.enable_x64(True):
        eigenvalue = smallest_eigenvalue(cell.operator, cell.initial(x).shape[1:])
        wide = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), tree)  # noqa: E731
        nnx.update(cell, wide(nnx.state(cell)))
        x = wide(x)
        cell.linear = GMRES(rtol=1e-12, max_steps=200)
        solve = nnx.jit(lambda layer, x, z0: layer.solve(x, z0=z0))
        zero = jnp.zeros_like(x)
        far = 1e3 * jax.random.normal(jax.random.key(0), x.shape, jnp.float64)
        found = {}
        for cell.splitting in SPLITTINGS:
            for name, start in {"zero": zero, "far": far}.items():
                value, stats = solve(DEQ(cell, Picard(rtol=1e-9, max_steps=5000)), x, start)
                found[cell.splitting, name] = value, stats.converged.all(), float(stats.steps.mean())
        reference = found[SPLITTINGS[0], "zero"][0]
        error = jax.nn.relu(cell.operator(reference) + cell.inject(x)) - reference
        metrics = {
            "m": cell.operator.m,
            "certificate": certificate,
            "smallest_eigenvalue": eigenvalue,
            "norm_bound_symmetric": bounds[0],
            "norm_bound_skew": bounds[1],
            "all_converged": all(bool(entry[1]) for entry in found.values()),
            "residual_of_the_equation": distance(reference + error, reference),
            "largest_distance": max(distance(entry[0], reference) for entry in found.values()),
            "mean_steps": {f"{splitting} from {start}": entry[2] for (splitting, start), entry in found.items()},
        }
    write_result(
        "mondeq",
        metrics,
        {"smallest_eigenvalue": ">= certificate", "all_converged": True, "largest_distance": "<= 1e-5"},
        time.perf_counter() - began,
    )


if __name__ == "__main__":
    main()
