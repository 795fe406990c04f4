"""Flows on images: bits per dimension, inverse error and Lipschitz bounds of the configs for digits and MNIST.

python benchmarks/images.py [--runs FOLDER] [NAME ...]

Every config is trained in FOLDER/NAME, or read from there where it has been. The inverse is that of 64 test images with noise, of which
the whole numbers are to come back. Where log-determinants are estimated, `exact` is the likelihood of 16 test images by a factorisation
of every block's Jacobian, and `estimated` that of the same images with the same noise as it is reported, with its standard error.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import RESULTS, ROOT, study, write_result
from flax import nnx

from deqflow.config import load as load_config
from deqflow.flows import Equation, Exact
from deqflow.tasks.bijector_reports import report_rows
from deqflow.train import load
from deqflow.train.assemble import assemble

# The published figures are those of Chen et al. 2019, table 1, with models and trainings many times as large.
EXPECTED = {
    "digits_glow": {"bits_per_dim": "<= 2.043, 0.03 below the best Gaussian mixture (digits_mixture.json)"},
    "mnist_glow": {"bits_per_dim": "<= 1.4 (published: 1.05)"},
    "mnist_residual": {"bits_per_dim": "published: 0.97"},
    "mnist_implicit": {"bits_per_dim": "no worse than mnist_residual"},
}


def bits(model: Any, x: np.ndarray) -> tuple[float, float]:
    """Mean bits per dimension of images, and the standard error that the probes show."""
    graph, state = nnx.split(model)
    evaluate = jax.jit(lambda state, x, key: nnx.merge(graph, state).log_prob_and_diagnostics(x, key=key))
    log_prob, diagnostics = evaluate(state, x, jax.random.key(0))
    unit = math.prod(x.shape[1:]) * math.log(2)
    variance = report_rows(diagnostics).get("log_det_variance", np.zeros(len(x)))
    return float(-log_prob.mean() / unit), float(np.sqrt(variance.sum()) / len(x) / unit)


def exact(model: Any, x: np.ndarray) -> dict[str, float]:
    """Bits per dimension as estimated and without an estimate, where a model has estimates."""
    equations = [node for _, node in nnx.iter_graph(model) if isinstance(node, Equation)]
    if not equations:
        return {}
    estimated, error = bits(model, x)
    for equation in equations:
        equation.eval_log_det = Exact()
    return {"estimated": estimated, "estimated_standard_error": error, "exact": bits(model, x)[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="configs to study, all by default; what is kept of the others stays")
    parser.add_argument("--runs", type=Path, help="where the run directories are kept; a temporary folder by default")
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows: dict[str, Any] = json.loads((RESULTS / "images.json").read_text())["metrics"] if arguments.names else {}
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        for name in arguments.names or EXPECTED:
            x = assemble(load_config(ROOT / "configs" / f"{name}.yaml")).source.split("test").gather(np.arange(64))["x"]
            rows[name] = study(name, runs / name, x) | exact(load(runs / name), x[:16])
    write_result("images", rows, {name: EXPECTED[name] for name in rows}, time.perf_counter() - began)


if __name__ == "__main__":
    main()
