"""Flows on densities of the plane: likelihood, inverse error and Lipschitz bounds of every committed config.

python benchmarks/flows.py [--runs FOLDER] [NAME ...]

Every config is trained in FOLDER/NAME, or read from there where `deqflow train configs/NAME.yaml --run FOLDER/NAME` has done so with the
very same config. Then the model that the run selects maps points that are uniform on the square from -4 to 4 to the latent and back.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from common import RESULTS, study, write_result

from deqflow.flows import Repeat
from deqflow.train import load

EXPECTED = {
    "checkerboard_spline": {"nats": "<= 3.49"},
    "checkerboard_residual": {"nats": "<= 3.50"},
    "checkerboard_implicit": {"nats": "<= 3.485, and no worse than checkerboard_residual"},
    "eight_gaussians_spline": {"gap": "<= 0.03"},
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
