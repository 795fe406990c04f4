"""Implicit models in JAX: layers defined by an equation, and the one theorem that differentiates them.

If `F(y, x) = 0` and `∂F/∂y` is non-singular, then `dy/dx = -(∂F/∂y)⁻¹ ∂F/∂x`, whatever solver found `y`. The names and packages
below are imported when they are first used, so that `import deqflow` costs next to nothing.

>>> import deqflow
>>> import jax.numpy as jnp
>>> solution = deqflow.fixed_point(jnp.cos, jnp.ones((1, 1)), solver=deqflow.Anderson(rtol=1e-6))
>>> print(f"{solution.value[0, 0]:.4f}")
0.7391
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> the package it comes from; `__init__.pyi` says the same to type checkers
_NAMES = {
    "Anderson": "deqflow.implicit",
    "Broyden": "deqflow.implicit",
    "GMRES": "deqflow.implicit",
    "Implicit": "deqflow.implicit",
    "Newton": "deqflow.implicit",
    "Picard": "deqflow.implicit",
    "Solution": "deqflow.implicit",
    "Status": "deqflow.implicit",
    "argmin": "deqflow.implicit",
    "diagnose": "deqflow.implicit",
    "fixed_point": "deqflow.implicit",
    "implicit_diff": "deqflow.implicit",
    "implicit_function": "deqflow.implicit",
    "root": "deqflow.implicit",
    "DEQ": "deqflow.deq",
    "Flow": "deqflow.flows",
    "load": "deqflow.train",
}
_PACKAGES = ("bench", "config", "data", "deq", "flows", "implicit", "models", "nn", "registry", "tasks", "train")

__all__ = ["__version__", *_NAMES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"deqflow.{name}")
    raise AttributeError(f"module 'deqflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
