"""Flows on densities of the plane: likelihood, inverse error and Lipschitz bounds of every committed config.

python benchmarks/flows.py [--runs FOLDER] [NAME ...]

Every config is trained in FOLDER/NAME, or read from there where `deqflow train configs/NAME.yaml --run FOLDER/NAME` has done so with the
very same config. Then the model that the run selects maps points that are uniform on the square from -4 to 4 to the latent and back.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from common import RESULTS, ROOT, write_result
from flax import nnx

from deqflow.flows import Bijector, Repeat
from deqflow.implicit import Status
from deqflow.tasks.reports import report_rows
from deqflow.train import load, run

EXPECTED = {
    "checkerboard_spline": {"nats": "<= 3.49"},
    "checkerboard_residual": {"nats": "<= 3.50"},
    "checkerboard_implicit": {"nats": "<= 3.485, and no worse than checkerboard_residual"},
    "eight_gaussians_spline": {"gap": "<= 0.03"},
}


def round_trip(bijector: Bijector, x: jax.Array) -> dict[str, float]:
    """Largest and root-mean-square error of `inverse(forward(x))`, and the fraction of points all of whose solves converged."""
    graph, state = nnx.split(bijector)

    @jax.jit
    def there_and_back(state: Any, x: jax.Array) -> Any:
        b = nnx.merge(graph, state)
        z = b.forward_and_log_det(x)
        back = b.inverse_and_log_det(z.value)
        statuses = [rows["status"] for rows in (report_rows(z.diagnostics), report_rows(back.diagnostics)) if "status" in rows]
        return back.value - x, [status == Status.CONVERGED for status in statuses]

    error, converged = there_and_back(state, x)
    mean = float(np.mean([np.asarray(c) for c in converged])) if converged else 1.0
    return {
        "largest_inverse_error": float(jnp.abs(error).max()),
        "rms_inverse_error": float(jnp.sqrt(jnp.mean(error**2))),
        "converged": mean,
    }


def study(name: str, folder: Path, x: np.ndarray | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The result of a config, and how well its model inverts `x`, by default points in the plane."""
    result = run(ROOT / "configs" / f"{name}.yaml", folder, overrides=overrides, resume=folder.exists())
    model: Any = load(folder)
    if x is None:
        x = np.random.default_rng(0).uniform(-4, 4, (4096, 2))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return {
        **result.test,
        "selected_step": result.selected_step,
        "train_seconds": round(json.loads((folder / "DONE").read_text())["seconds"], 1),
        "parameters": parameters,
        **round_trip(model.flow.bijector, jnp.asarray(x, jnp.float32)),
        "lipschitz_bounds": [round(b, 4) for b in model.lipschitz_bounds()],
    }


def forming(name: str, model: Any, every: int) -> None:
    """Draw how samples form through the layers, from the latent to the data."""
    layers = [block for layer in model.flow.bijector.layers for block in (layer.blocks() if isinstance(layer, Repeat) else [layer])]
    points = model.flow.base.sample(jax.random.key(0), 6000)
    frames = [np.asarray(points)]
    for layer in reversed(layers):
        points = layer.inverse_and_log_det(points).value
        frames.append(np.asarray(points))
    frames = frames[:-1:every] + frames[-1:]
    figure, axes = plt.subplots(1, len(frames), figsize=(2.2 * len(frames), 2.4), layout="constrained")
    for axis, frame in zip(axes, frames, strict=True):
        axis.plot(*frame.T, ",", alpha=0.6)
        axis.set(xticks=[], yticks=[], aspect="equal")
    axes[0].set_title("latent")
    axes[-1].set_title("data")
    figure.savefig(RESULTS / f"{name}_forming.png", dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="configs to study; all by default")
    parser.add_argument("--runs", type=Path, help="where the run directories are kept; a temporary folder by default")
    arguments = parser.parse_args()
    began = time.perf_counter()
    names = arguments.names or list(EXPECTED)
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        rows = {name: study(name, runs / name) for name in names}
        for name in names:
            if name == "checkerboard_implicit":
                forming(name, load(runs / name), every=1)
    write_result("flows", rows, {name: EXPECTED[name] for name in names}, time.perf_counter() - began)


if __name__ == "__main__":
    main()
