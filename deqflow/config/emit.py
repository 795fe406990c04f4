"""Nested dicts, lists and scalars -> YAML 1.2 that this package reads back to the same values."""

import math
import re
from typing import Any

from deqflow.config.source import resolve


def emit(tree: dict[str, Any]) -> str:
    """The YAML text of a mapping: one entry a line, lists of scalars in brackets.

    Example:
      >>> print(emit({"seed": 0, "model": {"kind": "flow", "rtol": 1e-05, "shape": [8, 8], "note": "yes: 1"}}), end="")
      seed: 0
      model:
        kind: flow
        rtol: 1e-05
        shape: [8, 8]
        note: "yes: 1"
    """
    return "".join(f"{line}\n" for line in _lines(tree))


def _lines(tree: dict[str, Any]) -> list[str]:
    lines = []
    for key, value in tree.items():
        nested = _nested(value)
        lines += [f"{_text(key)}:", *(f"  {line}" for line in nested)] if nested else [f"{_text(key)}: {_flow(value)}"]
    return lines


def _nested(value: Any) -> list[str]:
    """The lines of a value that does not fit behind its key; none for one that does."""
    if isinstance(value, dict):
        return _lines(value)
    if not isinstance(value, list) or not any(isinstance(entry, (dict, list)) and entry for entry in value):
        return []
    lines: list[str] = []
    for entry in value:
        first, *rest = _nested(entry) or [_flow(entry)]
        lines += [f"- {first}", *(f"  {line}" for line in rest)]
    return lines


def _flow(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float() if not math.isfinite(value):
            return ".nan" if math.isnan(value) else "-.inf" if value < 0 else ".inf"
        case int() | float():
            return repr(value)
        case str():
            return _text(value)
        case list():
            return f"[{', '.join(_flow(entry) for entry in value)}]"
        case dict() if not value:
            return "{}"
    raise TypeError(f"cannot write {type(value).__name__} as YAML")


def _text(text: str) -> str:
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./+-]*", text) and resolve(text) == text:
        return text
    escaped = (char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in text)
    return f'"{"".join(escaped)}"'
