"""Language models of equal parameters on equal tokens: a DEQ transformer beside explicit ones of several depths, and what they cost.

python benchmarks/language.py deq            # configs/shakespeare_deq.yaml with three seeds, and its generation
python benchmarks/language.py transformer    # configs/shakespeare_transformer.yaml at six depths, its best with three seeds
python benchmarks/language.py memory         # compiled memory of a training step against iterations

`--data` says where the text lies. Runs of one seed see the same windows in the same order. The explicit transformers are tuned with the
first seed, on the validation loss alone: the depth together with the learning rate, and then the rate and the heads of the best.
Generation is measured twice from the same random choices, each solve once from the equilibrium of the window before and once from zero.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import ROOT, write_result
from flax import nnx

from deqflow.config import load
from deqflow.models.generate import generate
from deqflow.train import SavedRun, check, run

EXPLICIT = {4: (48, 4), 8: (34, 2), 2: (68, 4), 1: (96, 4), 3: (55, 5), 6: (39, 3)}  # width and heads by depth, at equal parameters
RATES = (1.2e-2, 2e-2)  # of learning: each depth counts at its better one
NEARBY = (2 / 3, 4 / 3)  # rates beside that of the best, as factors
HEADS = (2, 3, 6, 8)  # tried at the best depth, those that divide its width
SEEDS = (0, 1, 2)
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
    """Mean losses of runs with several seeds, and the largest distance from the mean on the validation split."""
    validation, test = (np.array([entry[split]["loss"] for entry in runs]) for split in ("validation", "test"))
    spread = float(np.abs(validation - validation.mean()).max())
    return {"validation_mean": float(validation.mean()), "validation_spread": spread, "test_mean": float(test.mean()), "runs": list(runs)}


def explicit(overrides: Sequence[str], began: float) -> None:
    """Tune the explicit transformers, and train the best with every seed; each run adds to the result."""
    tried: list[dict[str, Any]] = []

    def best() -> dict[str, Any]:
        return min(tried, key=lambda entry: entry["validation"]["loss"])

    def attempt(depth: int, width: int, heads: int, rate: float, seed: int) -> dict[str, Any]:
        changes = {"model.depth": depth, "model.width": width, "model.heads": heads, "optim.lr.peak": rate, "seed": seed}
        numbers, _ = train("shakespeare_transformer", overrides, **changes)
        return {"depth": depth, "width": width, "heads": heads, "peak_rate": rate, "seed": seed, **numbers}

    def keep(seeds: Sequence[dict[str, Any]] = ()) -> None:
        metrics = {"best": summary(seeds) if seeds else best(), "tuning_runs": len(tried), "tuning": tried}
        write_result("language_transformer", metrics, {}, time.perf_counter() - began)

    for rate, (depth, (width, heads)) in itertools.product(RATES, EXPLICIT.items()):
        tried.append(attempt(depth, width, heads, rate, SEEDS[0]))
        keep()
    first = best()
    for factor in NEARBY:
        tried.append(attempt(first["depth"], first["width"], first["heads"], float(f"{factor * first['peak_rate']:.3g}"), SEEDS[0]))
        keep()
    second = best()
    for heads in (heads for heads in HEADS if second["width"] % heads == 0 and heads != second["heads"]):
        tried.append(attempt(second["depth"], second["width"], heads, second["peak_rate"], SEEDS[0]))
        keep()
    chosen = best()
    seeds = [chosen]
    for seed in SEEDS[1:]:
        seeds.append(attempt(chosen["depth"], chosen["width"], chosen["heads"], chosen["peak_rate"], seed))
        keep(seeds)


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
    parser.add_argument("what", choices=("deq", "transformer", "memory"))
    parser.add_argument("--data", default="data/tinyshakespeare/input.txt", help="tiny Shakespeare (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="train for this many steps instead of the configs'")
    arguments = parser.parse_args()
    began = time.perf_counter()
    overrides = [f"data.path={arguments.data}"] + ([f"train.steps={arguments.steps}"] if arguments.steps else [])
    if arguments.what == "transformer":
        return explicit(overrides, began)
    if arguments.what == "deq":
        runs = []
        for seed in SEEDS:
            numbers, folder = train("shakespeare_deq", overrides, seed=seed)
            runs.append({"seed": seed, **numbers} | ({"generation": generation(folder)} if seed == SEEDS[0] else {}))
        metrics = summary(runs)
        expected = {
            "validation_mean": "no more than that of the best in language_transformer",
            "runs": [{"generation": {"steps_saved": "> 0"}}],
        }
    else:
        rows = memory(arguments.data)
        implicit = [row["compiled_bytes"] for row in rows if row["method"] == "implicit"]
        metrics = {"rows": rows, "implicit_last_over_first": implicit[-1] / implicit[0]}
        expected = {"implicit_last_over_first": "<= 1.02"}
    write_result(f"language_{arguments.what}", metrics, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
