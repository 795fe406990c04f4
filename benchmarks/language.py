"""Language models of equal parameters on equal tokens: a DEQ transformer beside explicit ones of several depths, and what they cost.

python benchmarks/language.py deq            # configs/shakespeare_deq.yaml, and its generation
python benchmarks/language.py transformer    # configs/shakespeare_transformer.yaml at four depths
python benchmarks/language.py memory         # compiled memory of a training step against iterations

`--data` says where the text lies. Every run sees the same windows in the same order. Generation is measured twice from the same random
choices, each solve once from the equilibrium of the window before and once from zero.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import ROOT, write_result
from flax import nnx

from deqflow.config import load
from deqflow.models.generate import generate
from deqflow.train import SavedRun, check, run

EXPLICIT = {4: (48, 4), 2: (68, 4), 1: (96, 4), 8: (34, 2)}  # width and heads by depth: the parameters of the DEQ, or a few more
RATES = (1.2e-2, 2e-2)  # of learning: each depth counts at its better one
ITERATIONS = (10, 100, 1000)
UNROLLED = (10, 20, 40)
LENGTH = 128  # tokens that are generated


def train(name: str, overrides: list[str]) -> tuple[dict[str, Any], Path]:
    """Train a config, and return its numbers and its run directory."""
    folder = Path(tempfile.mkdtemp()) / "run"
    result = run(ROOT / "configs" / f"{name}.yaml", folder, overrides=overrides, quiet=True)
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
    if arguments.what == "deq":
        metrics, folder = train("shakespeare_deq", overrides)
        metrics["generation"] = generation(folder)
        expected = {"validation": {"loss": "no more than that of the best in language_transformer"}, "generation": {"steps_saved": "> 0"}}
    elif arguments.what == "transformer":
        runs = []
        for rate, (depth, (width, heads)) in itertools.product(RATES, EXPLICIT.items()):
            changes = {"model.depth": depth, "model.width": width, "model.heads": heads, "optim.lr.peak": rate}
            numbers, _ = train("shakespeare_transformer", [*overrides, *(f"{name}={value}" for name, value in changes.items())])
            runs.append({"depth": depth, "width": width, "peak_rate": rate, **numbers})
            best = min(runs, key=lambda entry: entry["validation"]["loss"])
            write_result("language_transformer", {"best": best, "runs": runs}, {}, time.perf_counter() - began)  # each adds to the file
        return
    else:
        rows = memory(arguments.data)
        implicit = [row["compiled_bytes"] for row in rows if row["method"] == "implicit"]
        metrics = {"rows": rows, "implicit_last_over_first": implicit[-1] / implicit[0]}
        expected = {"implicit_last_over_first": "<= 1.02"}
    write_result(f"language_{arguments.what}", metrics, expected, time.perf_counter() - began)


if __name__ == "__main__":
    main()
