"""What the benchmarks share: how a result is kept."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deqflow.train.directory import environment

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
