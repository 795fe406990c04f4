"""What the benchmarks share: how a flow is studied, and how a result is kept."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deqflow.flows import Bijector
from deqflow.implicit import Status
from deqflow.runs.directory import environment
from deqflow.tasks.bijector_reports import report_rows
from deqflow.train import load, run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def _said(argument: str) -> str:
    """An argument of the command, of a path elsewhere on the machine the name alone."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def write_result(name: str, metrics: Mapping[str, Any], expected: Mapping[str, Any], seconds: float) -> Path:
    """Keep a result as `results/NAME.json`, with the command, versions, device and commit that made it, and print it.

    What another platform than the CPU has measured is kept beside, in `results/gpu/` or `results/tpu/`.

    Args:
      name: of the benchmark.
      metrics: what was measured.
      expected: what it should be, in words or numbers, by the same names.
      seconds: how long it took.
    """
    here = environment()
    result = {
        "name": name,
        "command": " ".join(["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *map(_said, sys.argv[1:])]),
        "metrics": dict(metrics),
        "expected": dict(expected),
        "seconds": round(seconds, 1),
        "device": here["device"],
        "versions": here["versions"],
        "commit": here["commit"],
    }
    platform = here["device"]["platform"]
    path = RESULTS / ("" if platform == "cpu" else platform) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    path.write_text(text + "\n")
    print(text)
    return path


def round_trip(bijector: Bijector, x: jax.Array) -> dict[str, float]:
    """Largest and root-mean-square error of `inverse(forward(x))`, and the fraction of points all of whose solves converged."""
    graph, state = nnx.split(bijector)
    key = jax.random.key(0)  # for noise and probes

    @jax.jit
    def there_and_back(state: Any, x: jax.Array) -> Any:
        b = nnx.merge(graph, state)
        z = b.forward_and_log_det(x, key=key)
        back = b.inverse_and_log_det(z.value, key=key)
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
