"""Language models of equal parameters on equal tokens: a DEQ transformer beside explicit ones of several depths, and what they cost.

python benchmarks/language.py deq            # configs/shakespeare_deq.yaml with three seeds, and its generation
python benchmarks/language.py transformer    # configs/shakespeare_transformer.yaml at six depths, the best with three seeds
python benchmarks/language.py memory         # compiled memory of a training step against iterations
python benchmarks/language.py words          # configs/ptb_deq.yaml and configs/ptb_transformer.yaml, one seed

`--data` says where the text lies. Runs of one seed see the same windows in the same order. The explicit transformers are tuned with the
first seed, on the validation loss alone: the depth together with the learning rate, and then the rate and the heads of the best. The
three best are trained with every seed, and the mean decides. Generation is measured twice from the same random choices, each solve once
from the equilibrium of the window before and once from zero.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import RESULTS, ROOT, write_result
from flax import nnx

from deqflow.bench import check
from deqflow.config import load
from deqflow.models.generate import generate
from deqflow.train import SavedRun, run

EXPLICIT = {4: (48, 4), 8: (34, 2), 2: (68, 4), 1: (96, 4), 3: (55, 5), 6: (39, 3)}  # width and heads by depth, at equal parameters
RATES = (1.2e-2, 2e-2)  # of learning: each depth counts at its better one
NEARBY = (2 / 3, 4 / 3)  # rates beside that of the best, as factors
HEADS = (2, 3, 6, 8)  # tried at the best depth, those that divide its width
SEEDS = (0, 1, 2)
FINALISTS = 3  # settings that are trained with every seed, as one seed's loss strays from the mean by more than the settings differ
ITERATIONS = (10, 100, 1000)
UNROLLED = (10, 20, 40)
LENGTH = 128  # tokens that are generated


def train(name: str, overrides: Sequence[str], **changes: Any) -> tuple[dict[str, Any], Path]:
    """Train a config with some changes, and return its numbers and its run directory."""
    folder = Path(tempfile.mkdtemp()) / "run"
    changed = [f"{key}={value}" for key, value in changes.items()]
    result = run(ROOT / "configs" / f"{name}.yaml", folder, overrides=[*overrides, *changed], quiet=True)
    saved = SavedRun.open(folder)
    batch = saved.assembly.batch["x"].shape
    return {
        "parameters": sum(int(np.prod(leaf.shape)) for key, leaf in saved.state.items() if key.startswith("params/")),
        "training_tokens": result.step * batch[0] * (batch[1] - 1),
        "train_seconds": round(result.seconds, 1),
        "selected_step": result.selected_step,
        "validation": saved.evaluate("validation"),
        "test": result.test,
    }, folder


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Losses of runs that differ in the seed alone, their means, and the largest distance from the mean on the validation split."""
    validation, test = (np.array([entry[split]["loss"] for entry in runs]) for split in ("validation", "test"))
    return {
        "validation_mean": float(validation.mean()),
        "validation_spread": float(np.abs(validation - validation.mean()).max()),
        "test_mean": float(test.mean()),
        "validation": {str(entry["seed"]): entry["validation"]["loss"] for entry in runs},
    }


def equilibrium(overrides: Sequence[str], began: float) -> None:
    """Train the DEQ with every seed, and let the first write; each run adds to the result."""
    runs: list[dict[str, Any]] = []
    written: dict[str, float] = {}
    for seed in SEEDS:
        numbers, folder = train("shakespeare_deq", overrides, seed=seed)
        runs.append({"seed": seed, **numbers})
        if not written:
            written = generation(folder)
        metrics = {**summary(runs), "generation": written, "runs": runs}
        expected = {
            "validation_mean": "no more than that of the best in language_transformer",
            "generation": {"steps_saved": "> 0"},
        }
        write_result("language_deq", metrics, expected, time.perf_counter() - began)


def explicit(overrides: Sequence[str], kept: Sequence[dict[str, Any]], began: float) -> None:
    """Tune the explicit transformers with the first seed, and train the best of them with the others; each run adds to the result."""
    runs: list[dict[str, Any]] = []

    def attempt(depth: int, width: int, heads: int, rate: float, seed: int = SEEDS[0]) -> None:
        settings = {"depth": depth, "width": width, "heads": heads, "peak_rate": rate, "seed": seed}
        if any(settings.items() <= entry.items() for entry in runs):
            return
        for entry in (entry for entry in kept if settings.items() <= entry.items()):
            return runs.append(entry)
        changes = {"model.depth": depth, "model.width": width, "model.heads": heads, "optim.lr.peak": rate, "seed": seed}
        runs.append(settings | train("shakespeare_transformer", overrides, **changes)[0])
        write_result("language_transformer", {"runs": runs}, {}, time.perf_counter() - began)

    def ranked() -> list[dict[str, Any]]:
        return sorted((entry for entry in runs if entry["seed"] == SEEDS[0]), key=lambda entry: entry["validation"]["loss"])

    for rate, (depth, (width, heads)) in itertools.product(RATES, EXPLICIT.items()):
        attempt(depth, width, heads, rate)
    first = ranked()[0]
    for factor in NEARBY:
        attempt(first["depth"], first["width"], first["heads"], float(f"{factor * first['peak_rate']:.3g}"))
    second = ranked()[0]
    for heads in (heads for heads in HEADS if second["width"] % heads == 0):
        attempt(second["depth"], second["width"], heads, second["peak_rate"])
    tuning = len(runs)
    finalists = []
    for entry in ranked()[:FINALISTS]:
        settings = {name: entry[name] for name in ("depth", "width", "heads", "peak_rate")}
        for seed in SEEDS:
            attempt(entry["depth"], entry["width"], entry["heads"], entry["peak_rate"], seed)
        finalists.append(settings | summary([other for other in runs if settings.items() <= other.items()]))
    best = min(finalists, key=lambda entry: entry["validation_mean"])
    metrics = {"best": best, "finalists": finalists, "tuning_runs": tuning, "runs": runs}
    write_result("language_transformer", metrics, {}, time.perf_counter() - began)


def words(overrides: Sequence[str], began: float) -> None:
    """Train both word-level models; each adds to the result."""
    metrics: dict[str, Any] = {}
    for name in ("ptb_transformer", "ptb_deq"):
        metrics[name] = train(name, overrides)[0]
        write_result("language_words", metrics, {}, time.perf_counter() - began)


def generation(folder: Path) -> dict[str, float]:
    """Solver steps for each new character, with a warm start and without, from the same prompts and random choices."""
    saved = SavedRun.open(folder)
    prompt = jax.numpy.asarray(saved.assembly.source.split("test").gather(np.arange(4))["x"][:, :-1])
    graph, state = nnx.split(saved.model())

    def write(warm: bool) -> tuple[np.ndarray, np.ndarray]:
        draw = jax.jit(lambda state: generate(nnx.merge(graph, state), prompt, LENGTH, jax.random.key(0), warm=warm))
        tokens, steps = draw(state)
        return np.asarray(tokens), np.asarray(steps)

    (text, warm), (same, cold) = write(True), write(False)
    return {
        "warm_steps": float(warm.mean()),
        "cold_steps": float(cold.mean()),
        "steps_saved": float(1 - warm.mean() / cold.mean()),
        "same_characters": float((text == same).mean()),
    }


def memory(data: str) -> list[dict[str, Any]]:
    """Compiled memory of a training step, by XLA's plan, for a growing number of solver steps."""
    rows = []
    for method, counts in (("implicit", ITERATIONS), ("unrolled", UNROLLED)):
        for steps in counts:
            changes = [f"data.path={data}", f"model.solver.max_steps={steps}"]
            changes += ["model.gradient={kind: unrolled}"] if method == "unrolled" else []
            report = check(load(ROOT / "configs" / "shakespeare_deq.yaml", changes))
            rows.append({"method": method, "steps": steps, "compiled_bytes": report.temporary_bytes})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("deq", "transformer", "memory", "words"))
    parser.add_argument("--data", default="data/tinyshakespeare/input.txt", help="tiny Shakespeare (default: %(default)s)")
    parser.add_argument("--words", type=Path, default=Path("data/ptb"), help="folder of the Penn Treebank (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="train for this many steps instead of the configs'")
    parser.add_argument("--keep", action="store_true", help="keep the explicit transformers that the result has, and train the others")
    arguments = parser.parse_args()
    began = time.perf_counter()
    shorter = [f"train.steps={arguments.steps}"] if arguments.steps else []
    overrides = [f"data.path={arguments.data}", *shorter]
    if arguments.what == "transformer":
        old = RESULTS / "language_transformer.json"
        kept = json.loads(old.read_text())["metrics"]["runs"] if arguments.keep and old.exists() else []
        return explicit(overrides, kept, began)
    if arguments.what == "deq":
        return equilibrium(overrides, began)
    if arguments.what == "words":
        files = {"path": "train", "validation": "valid", "test": "test"}
        return words([f"data.{name}={arguments.words}/ptb.{part}.txt" for name, part in files.items()] + shorter, began)
    rows = memory(arguments.data)
    implicit = [row["compiled_bytes"] for row in rows if row["method"] == "implicit"]
    metrics = {"rows": rows, "implicit_last_over_first": implicit[-1] / implicit[0]}
    write_result("language_memory", metrics, {"implicit_last_over_first": "<= 1.02"}, time.perf_counter() - began)


if __name__ == "__main__":
    main()
