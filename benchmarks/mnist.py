"""Accuracy on the full official test set, and residual, of the configs on MNIST and Fashion-MNIST.

python benchmarks/mnist.py mnist_deq fashion_mnist_deq

Each is trained as it is committed. The folder given by --data holds `mnist/` and `fashion_mnist/` with the official files.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import jax
from common import ROOT, write_result
from flax import nnx

from deqflow.config import load
from deqflow.train import load as trained
from deqflow.train import run

EXPECTED = {"mnist_deq": 0.992, "fashion_mnist_deq": 0.91, "mnist_mondeq": 0.985, "fashion_mnist_mondeq": 0.9}  # least accuracy


def measure(name: str, data: Path, runs: Path) -> None:
    """Train one config and keep its result."""
    path = ROOT / "configs" / f"{name}.yaml"
    folder = data / Path(load(path).data.arguments["folder"]).name
    began, cpu = time.perf_counter(), time.process_time()
    result = run(path, runs / name, overrides=[f"data.folder={folder}"])
    if result.interrupted:
        raise SystemExit(f"{name} was interrupted at step {result.step}: no result is kept")
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    parameters = jax.tree.leaves(nnx.state(trained(result.directory), nnx.Param))
    write_result(
        name,
        {
            **result.test,
            "parameters": sum(math.prod(leaf.shape) for leaf in parameters),
            "steps": result.step,
            "selected_step": result.selected_step,
            "train_seconds": round(result.seconds, 1),
            "cpu_seconds": round(cpu, 1),
        },
        {"accuracy": f">= {EXPECTED[name]}", "residual_median": "<= 1e-2"},
        seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", choices=EXPECTED, metavar="CONFIG", help=", ".join(EXPECTED))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    parser.add_argument("--runs", type=Path, help="folder that keeps the run directories (default: they are not kept)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.configs:
            measure(name, arguments.data, arguments.runs or Path(folder))


if __name__ == "__main__":
    main()
