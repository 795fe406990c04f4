"""A small registry of made-up components, so that these tests depend on no real one."""

import dataclasses
import enum
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest

from deqflow import registry
from deqflow.config import document
from deqflow.registry import FromRuntime, Range, check_ranges


class Solver:
    """Base class of the solvers."""


class Cell:
    """Base class of the cells."""


class Schedule:
    """Base class of the schedules."""


@dataclasses.dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration.

    More about it.

    Args:
      history: differences kept,
        at most.
      rtol: relative tolerance.
    """

    history: Annotated[int, Range(ge=1)] = 5
    rtol: Annotated[float, Range(gt=0)] = 1e-5
    exact: bool = False

    def __post_init__(self):
        check_ranges(type(self).__init__, vars(self))


@dataclasses.dataclass(frozen=True)
class Picard(Solver):
    """Plain iteration."""

    damping: Annotated[float, Range(gt=0, le=1)] = 1


class Conv(Cell):
    """A cell whose width comes from the model."""

    def __init__(self, width: Annotated[int, FromRuntime], *, groups: int = 2, solver: Solver = Picard()):
        if width % groups:
            raise ValueError(f"groups must divide the width, got {groups} groups for {width}")
        self.width, self.groups, self.solver = width, groups, solver


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine decay."""

    peak: Annotated[float, Range(gt=0)]
    warmup: Annotated[int, Range(ge=0)] = 0


@dataclasses.dataclass(frozen=True)
class Crop:
    """A nested plain dataclass."""

    size: int
    anchor: tuple[float, float] = (0.5, 0.5)


class Colour(enum.Enum):
    """Colours."""

    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Moons:
    """Two half moons."""

    batch_size: Annotated[int, Range(ge=1)] = 8
    noise: float = 0.1
    name: str | None = None


@dataclasses.dataclass(kw_only=True)
class Pictures:
    """Uses the rarer kinds of annotation."""

    path: pathlib.Path = pathlib.Path("here")
    colour: Colour = Colour.RED
    crop: Crop = dataclasses.field(default_factory=lambda: Crop(3))
    sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    limit: Annotated[float, Range(gt=0, le=float("inf"))] = 1.0
    number: int | float | Literal["auto"] = "auto"


class Classifier:
    """A classifier.

    Args:
      width: channels.
    """

    def __init__(
        self,
        width: Annotated[int, Range(ge=1)],
        *,
        solver: Solver = Anderson(history=7),
        fallback: Solver | None = None,
        cells: tuple[Solver, ...] = (),
        core: Callable[..., Cell] = Conv,
        norm: Literal["group", "layer"] = "group",
        classes: Annotated[int, FromRuntime],
        levels: Annotated[int | None, FromRuntime],
        rngs: Annotated[object, FromRuntime] = "none",
    ):
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        self.width, self.solver, self.fallback, self.cells, self.norm = width, solver, fallback, cells, norm
        self.core = core(width=width)
        self.classes, self.levels, self.rngs = classes, levels, rngs


class Density:
    """Has no arguments."""


@dataclasses.dataclass
class Adam:
    """An optimizer."""

    lr: Annotated[float, Range(gt=0)] | Schedule
    clip: Annotated[float, Range(gt=0)] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The `train` section."""

    steps: Annotated[int, Range(ge=1)]
    every: Annotated[int, Range(ge=1)] = 200
    ema: Annotated[float, Range(gt=0, lt=1)] | None = None


_KINDS = {
    "data": {"moons": Moons, "pictures": Pictures},
    "model": {"classifier": Classifier},
    "task": {"density": Density},
    "cell": {"conv": Conv},
    "solver": {"anderson": Anderson, "picard": Picard},
    "optim": {"adam": Adam},
    "schedule": {"cosine": Cosine},
}

TEXT = """\
seed: 1
data: {kind: moons}
model:
  kind: classifier
  width: 4
  solver: {kind: anderson, rtol: 1e-4}
  cells: [picard, {kind: anderson}]
task: density
optim:
  kind: adam
  lr: {kind: cosine, peak: 1e-3}
train: {steps: 1e3}
"""


@pytest.fixture
def fakes(monkeypatch):
    """The registry holds the components above alone."""

    def family(name):
        base = {"cell": Cell, "solver": Solver, "schedule": Schedule}.get(name)
        return registry._Family(f"{__name__}:{base.__name__}" if base else f"none:{name}", f"what {name} is", dict(_KINDS[name]))

    monkeypatch.setattr(registry, "_FAMILIES", {name: family(name) for name in _KINDS})
    monkeypatch.setattr(document, "_TRAIN", f"{__name__}:Settings")


@pytest.fixture
def text():
    """A config of the components above."""
    return TEXT


TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}


def _valid(value: Any, rule: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether `value` satisfies a JSON schema made of the keywords that deqflow uses."""
    known = {"$ref", "type", "const", "enum", "anyOf", "items", "prefixItems", "minItems", "maxItems", "properties", "required"}
    known |= {"additionalProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    assert set(rule) <= known | {"description", "default", "$schema", "$defs", "title", "format"}, rule
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    entries = value.items() if isinstance(value, dict) else ()
    checks = {
        "$ref": lambda ref: _valid(value, root["$defs"][ref.removeprefix("#/$defs/")], root),
        "type": lambda name: isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)),
        "const": lambda const: value == const,
        "enum": lambda options: value in options,
        "anyOf": lambda rules: any(_valid(value, option, root) for option in rules),
        "items": lambda item: not isinstance(value, list) or all(_valid(entry, item, root) for entry in value),
        "prefixItems": lambda items: not isinstance(value, list) or all(_valid(v, r, root) for v, r in zip(value, items, strict=False)),
        "minItems": lambda n: not isinstance(value, list) or len(value) >= n,
        "maxItems": lambda n: not isinstance(value, list) or len(value) <= n,
        "properties": lambda rules: all(_valid(v, rules[k], root) for k, v in entries if k in rules),
        "required": lambda keys: not isinstance(value, dict) or all(key in value for key in keys),
        "additionalProperties": lambda more: all(
            _valid(v, more, root) if isinstance(more, dict) else more for k, v in entries if k not in rule.get("properties", {})
        ),
        "minimum": lambda bound: not number or value >= bound,
        "maximum": lambda bound: not number or value <= bound,
        "exclusiveMinimum": lambda bound: not number or value > bound,
        "exclusiveMaximum": lambda bound: not number or value < bound,
    }
    return all(checks[keyword](argument) for keyword, argument in rule.items() if keyword in checks)


@pytest.fixture
def valid():
    """`valid(value, rule, root)`: whether a value satisfies a JSON schema."""
    return _valid
