"""What an entry of a config may be: numbers, words, lists, and alternatives of these.

Each shape checks a value, says in words what it expects, and knows its JSON schema.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pydantic

from deqflow.config.errors import Problem
from deqflow.config.source import Node
from deqflow.registry import Range, suggest

Json = dict[str, Any]


@dataclasses.dataclass
class Report:
    """The problems found so far, and the words by which messages call the data (`data moons`)."""

    data: str = "the data"
    problems: list[Problem] = dataclasses.field(default_factory=list)

    def add(self, node: Node, path: str, message: str) -> None:
        """Note one more problem, at the place of `node`."""
        self.problems.append(Problem(node.where, path, message))


class Shape(abc.ABC):
    """What a value may be."""

    @abc.abstractmethod
    def text(self) -> str:
        """What is expected, in words that follow `expected`."""

    @abc.abstractmethod
    def check(self, node: Node, path: str, report: Report) -> Any:
        """The value of `node` as the component takes it; problems go to `report`, and then the value means nothing."""

    @abc.abstractmethod
    def json(self) -> Json:
        """JSON schema."""

    def fits(self, node: Node) -> bool:
        """Whether `node` is meant to be this shape, right or wrong in its details; decides whose problems a union shows."""
        return False

    def names(self) -> Sequence[str]:
        """Words that this shape knows, for suggestions."""
        return ()

    def hint(self, value: Any) -> str:
        """How a value that is nearly right is put right."""
        return ""


def _expected(shape: Shape, node: Node, path: str, report: Report) -> None:
    near = suggest(node.value, shape.names()) if isinstance(node.value, str) else ""
    report.add(node, path, f"expected {shape.text()}, got {node.shown()}{near or shape.hint(node.value)}")


class Scalar(Shape):
    """A `bool`, `int`, `float` or `str`, none of which passes for another, except that an integer is a number and `1e3` an integer."""

    _WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    _JSON = {bool: "boolean", int: "integer", float: "number", str: "string"}

    def __init__(self, kind: type, ranges: Sequence[Range] = ()) -> None:
        self.kind = kind
        self.ranges = tuple(ranges) if kind in (int, float) else ()
        bounds = {sign: bound for r in self.ranges for sign, bound in dataclasses.asdict(r).items() if bound is not None}
        self.bounds = {sign: bound for sign, bound in bounds.items() if math.isfinite(bound)}
        self._adapter = pydantic.TypeAdapter(kind, config=pydantic.ConfigDict(strict=True))

    def text(self) -> str:
        return " ".join([self._WORDS[self.kind], " and ".join(str(r) for r in self.ranges)]).strip()

    def check(self, node: Node, path: str, report: Report) -> Any:
        value: Any = node.value
        if self.kind is int and isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
            value = int(value)  # 1e4 steps
        try:
            value = self._adapter.validate_python(value)
        except pydantic.ValidationError:
            return _expected(self, node, path, report)
        if self.kind in (int, float):
            value = self.kind(value)  # an integer becomes a number where one is expected
            if any(value not in r for r in self.ranges):
                return _expected(self, node, path, report)
            # A range admits infinity by a bound that is infinite and included.
            if self.kind is float and not math.isfinite(value) and not any(value in (r.le, r.ge) for r in self.ranges):
                return report.add(node, path, f"expected {self.text()} that is finite, got {node.shown()}")
            if self.kind is int and not -(2**63) <= value < 2**63:
                return report.add(node, path, f"expected {self.text()} of at most 64 bits, got {node.shown()}")
        return value

    def hint(self, value: Any) -> str:
        if self.kind is bool and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "y", "n", "true", "false"):
            return " (text in YAML 1.2)"
        if self.kind in (int, float) and isinstance(value, str) and _is_number(value):
            return " (text: remove the quotes)"
        if self.kind is str and isinstance(value, (bool, int, float)):
            return " (put it in quotes)"
        return ""

    def json(self) -> Json:
        words = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
        return {"type": self._JSON[self.kind], **{words[sign]: bound for sign, bound in self.bounds.items()}}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class Null(Shape):
    """`null`."""

    def text(self) -> str:
        return "null"

    def check(self, node: Node, path: str, report: Report) -> None:
        if node.value is not None:
            _expected(self, node, path, report)

    def json(self) -> Json:
        return {"type": "null"}


class Choice(Shape):
    """One of a few words or numbers (`Literal`)."""

    def __init__(self, choices: Sequence[Any]) -> None:
        self.choices = tuple(choices)

    def text(self) -> str:
        shown = [repr(choice) for choice in self.choices]
        return shown[0] if len(shown) == 1 else f"one of {', '.join(shown)}"

    def check(self, node: Node, path: str, report: Report) -> Any:
        for choice in self.choices:
            if type(choice) is type(node.value) and choice == node.value:
                return choice
        return _expected(self, node, path, report)

    def json(self) -> Json:
        return {"enum": list(self.choices)}

    def names(self) -> Sequence[str]:
        return [choice for choice in self.choices if isinstance(choice, str)]


class Items(Shape):
    """A list of any length whose entries are alike; it becomes a `list` or a `tuple`."""

    def __init__(self, item: Shape, container: type) -> None:
        self.item, self.container = item, container

    def text(self) -> str:
        return f"a list, each entry {self.item.text()}"

    def check(self, node: Node, path: str, report: Report) -> Any:
        if not isinstance(node.value, list):
            return _expected(self, node, path, report)
        return self.container(self.item.check(entry, f"{path}.{i}", report) for i, entry in enumerate(node.value))

    def json(self) -> Json:
        return {"type": "array", "items": self.item.json()}

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, list)


class Row(Shape):
    """A list of fixed length, entry by entry; it becomes a `tuple`."""

    def __init__(self, items: Sequence[Shape]) -> None:
        self.items = tuple(items)

    def text(self) -> str:
        words = [item.text() for item in self.items]
        each = f"each {words[0]}" if len(set(words)) == 1 else ", ".join(words)
        return f"a list of {len(words)} entries, {each}" if len(words) > 1 else f"a list of one entry, {words[0]}"

    def check(self, node: Node, path: str, report: Report) -> Any:
        if not isinstance(node.value, list):
            return _expected(self, node, path, report)
        if len(node.value) != len(self.items):
            return report.add(node, path, f"expected {self.text()}, got a list of {len(node.value)}")
        return tuple(item.check(entry, f"{path}.{i}", report) for i, (item, entry) in enumerate(zip(self.items, node.value, strict=True)))

    def json(self) -> Json:
        size = len(self.items)
        return {"type": "array", "prefixItems": [item.json() for item in self.items], "minItems": size, "maxItems": size}

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, list)


class Table(Shape):
    """A mapping from free names to values that are alike."""

    def __init__(self, value: Shape) -> None:
        self.value = value

    def text(self) -> str:
        return f"a mapping from names to values, each {self.value.text()}"

    def check(self, node: Node, path: str, report: Report) -> Any:
        if not isinstance(node.value, dict):
            return _expected(self, node, path, report)
        return {key: self.value.check(entry, f"{path}.{key}", report) for key, entry in node.value.items()}

    def json(self) -> Json:
        return {"type": "object", "additionalProperties": self.value.json()}

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, dict)


class Union(Shape):
    """One of several shapes: the first that takes the value."""

    def __init__(self, options: Sequence[Shape]) -> None:
        self.options = tuple(options)

    def text(self) -> str:
        return " or ".join(option.text() for option in self.options)

    def check(self, node: Node, path: str, report: Report) -> Any:
        # 3 is an integer before it is a number, 3.0 the other way round, and 'cosine' a word before it is the name of a component.
        def rank(option: Shape) -> int:
            return (0 if type(node.value) is option.kind else 1) if isinstance(option, Scalar) else 2 if option.fits(node) else 1

        fitting: list[Report] = []
        for option in sorted(self.options, key=rank):
            trial = Report(report.data)
            value = option.check(node, path, trial)
            if not trial.problems:
                return value
            if option.fits(node):
                fitting.append(trial)
        if fitting:
            report.problems.extend(fitting[0].problems)
        else:
            _expected(self, node, path, report)

    def json(self) -> Json:
        return {"anyOf": [option.json() for option in self.options]}

    def fits(self, node: Node) -> bool:
        return any(option.fits(node) for option in self.options)

    def names(self) -> Sequence[str]:
        return [name for option in self.options for name in option.names()]

    def hint(self, value: Any) -> str:
        return next((hint for option in self.options if (hint := option.hint(value))), "")


class Other(Shape):
    """Any further type that pydantic can check (`Path`, an `Enum`, `datetime`, ...)."""

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        self._adapter = pydantic.TypeAdapter(hint)
        self._adapter.json_schema()  # what has no schema cannot be written in a config either

    def text(self) -> str:
        return getattr(self.hint, "__name__", str(self.hint))

    def check(self, node: Node, path: str, report: Report) -> Any:
        try:
            return self._adapter.validate_python(node.plain())
        except pydantic.ValidationError as error:
            for detail in error.errors():
                where = ".".join([path, *(str(key) for key in detail["loc"])])
                report.add(node, where, f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, got {node.shown()}")

    def json(self) -> Json:
        return self._adapter.json_schema()

    def plain(self, value: Any) -> Any:
        """`value` as YAML can say it."""
        return self._adapter.dump_python(value, mode="json")
