"""Training: from a config to a run directory, and from a run directory back to the model.

The names are imported when they are first used: the schema of `train:` lives here too, and a mistake in a config should be told
before the trainer is loaded.
"""

import importlib
from typing import Any

_EXPORTS = {
    "Result": "running",
    "SavedRun": "saved",
    "TrainSettings": "settings",
    "load": "saved",
    "run": "running",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'deqflow.train' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"deqflow.train.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value
