"""Densities of the nine UCI regression sets: a Gaussian, affine and spline couplings, on the first of the standard splits.

python benchmarks/uci.py FOLDER [SET ...]

FOLDER holds the sets in the form of Hernández-Lobato and Adams (2015), `SET/data/data.txt` with `index_train_0.txt` and
`index_test_0.txt`. All columns together, the target among them, are one vector. Where a column takes few values, its density would be
infinite: uniform noise of the width of its smallest gap is added to every column once. Columns that do not vary are left out, and those
that have a correlation above 0.98 with one before them, as is usual (Papamakarios, Pavlakou and Murray 2017); the rest get mean 0 and
variance 1 by the training rows, of which a tenth validates. The Gaussian is fitted to the same rows. Both flows start from the first
batch's Gaussian, and the step of the best validation is tested: mean log-likelihood of the test rows in nats.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

from deqflow.train import run

SETS = [
    "bostonHousing",
    "concrete",
    "energy",
    "kin8nm",
    "naval-propulsion-plant",
    "power-plant",
    "protein-tertiary-structure",
    "wine-quality-red",
    "yacht",
]
SHARED = {"couplings": 6, "width": 64, "depth": 1, "dropout": 0.1, "whiten": True, "mixing": "linear"}
MODELS = {"affine": {"kind": "realnvp", **SHARED}, "spline": {"kind": "spline_flow", "bins": 8, **SHARED}}


def read(folder: Path) -> dict[str, np.ndarray]:
    """The rows to train, validate and test on."""
    table = np.loadtxt(folder / "data.txt")
    rng = np.random.default_rng(0)
    for column in table.T:
        gaps = np.diff(np.unique(column))
        column += (gaps.min() if len(gaps) else 0) * rng.uniform(size=len(column))
    table = table[:, np.ptp(table, axis=0) > 0]
    alike = np.abs(np.corrcoef(table.T)) > 0.98
    table = table[:, ~np.triu(alike, 1).any(0)]
    rows = {split: np.loadtxt(folder / f"index_{split}_0.txt").astype(int) for split in ("train", "test")}
    train = table[rows["train"]]
    mean, scale = train.mean(0), train.std(0)
    train, test = (train - mean) / scale, (table[rows["test"]] - mean) / scale
    train = rng.permutation(train)
    held = len(train) // 10
    return {name: part.astype(np.float32) for name, part in (("train", train[held:]), ("validation", train[:held]), ("test", test))}


def gaussian(train: np.ndarray, test: np.ndarray) -> float:
    """The mean log-likelihood of the rows of `test` under the Gaussian of largest likelihood."""
    mean, factor = train.mean(0), np.linalg.cholesky(np.cov(train.T.astype(float), ddof=0))
    z = np.linalg.solve(factor, (test - mean).T)
    return float(-0.5 * (z**2).sum(0).mean() - np.log(np.diag(factor)).sum() - 0.5 * len(factor) * math.log(2 * math.pi))


def study(folder: Path, work: Path) -> dict[str, Any]:
    """The log-likelihood of every model."""
    splits = read(folder)
    work.mkdir()
    file = work / "rows.npz"
    np.savez(file, allow_pickle=False, **splits)
    size = splits["train"].shape[1]
    row = {"rows": sum(map(len, splits.values())), "columns": size, "gaussian": round(gaussian(splits["train"], splits["test"]), 3)}
    batch = min(256, len(splits["train"]))
    for name, model in MODELS.items():
        config = {
            "data": {"kind": "arrays", "batch_size": batch, **{split: f"{file}:{split}" for split in splits}},
            "model": model,
            "task": {"kind": "density"},
            "optim": {"kind": "adamw", "lr": {"kind": "cosine", "peak": 1e-3, "warmup": 100}, "clip": 1.0, "weight_decay": 1e-3},
            "train": {"steps": 3000, "eval_every": 100, "checkpoint_every": 3000, "ema": 0.99, "patience": 8},
        }
        row[name] = round(-run(config, work / name, quiet=True).test["nats"], 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with one folder for every set")
    parser.add_argument("names", nargs="*", help="sets to study; all by default")
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.names or SETS:
            rows[name] = study(arguments.folder / name / "data", Path(temporary) / name)
            print(name, rows[name], flush=True)
    ordered = sum(row["spline"] >= row["affine"] >= row["gaussian"] for row in rows.values())
    metrics = {"sets": rows, "spline_affine_gaussian_in_order": ordered}
    write_result("uci", metrics, {"spline_affine_gaussian_in_order": "at least 6 of 9"}, time.perf_counter() - began)


if __name__ == "__main__":
    main()
