"""A class's `__init__` is its schema: annotations become shapes, and a mapping that fits them becomes a `Component`."""

import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deqflow import registry
from deqflow.config.component import Component, RuntimeArgument, plain
from deqflow.config.source import Node, from_python
from deqflow.config.values import Choice, Items, Json, Null, Other, Report, Row, Scalar, Shape, Table, Union
from deqflow.registry import FromRuntime, Range, UserError, suggest

REQUIRED = inspect.Parameter.empty  # stands where an argument has no default


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a component.

    Attributes:
      name: keyword.
      shape: what a config may say; `None` for what comes at run time.
      default: the default as YAML could say it, or `inspect.Parameter.empty`.
      admits_none: whether the annotation admits `None`.
      help: its entry in the docstring.
    """

    name: str
    shape: Shape | None
    default: Any
    admits_none: bool
    help: str


@functools.cache
def arguments_of(cls: type) -> tuple[Argument, ...]:
    """The arguments of `cls.__init__`, read from its signature, annotations and docstring.

    Raises:
      TypeError: if a config could not set one of them, which is a mistake in `cls`.
    """
    if cls.__init__ is object.__init__:
        return ()
    init = inspect.unwrap(cls.__init__)  # what checks types at run time wraps it
    try:
        hints = typing.get_type_hints(init, include_extras=True)
    except Exception as error:  # most often a name that is imported for type checkers only
        raise TypeError(f"the annotations of {cls.__module__}.{cls.__qualname__} cannot be read at run time: {error}") from error
    helps = argument_docs(cls)
    found = []
    for parameter in list(inspect.signature(init).parameters.values())[1:]:
        name, who = parameter.name, f"argument {parameter.name!r} of {cls.__module__}.{cls.__qualname__}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{who} must be a plain keyword argument, so that a config can name it")
        if name not in hints:
            raise TypeError(f"{who} must have a type annotation, which is its schema")
        hint = hints[name]
        at_runtime = any(mark is FromRuntime or isinstance(mark, FromRuntime) for mark in registry.markers(hint))
        try:
            shape = None if at_runtime else shape_of(hint)
        except Exception as error:  # pydantic has several ways of refusing a type
            raise TypeError(f"{who} has a type that a config cannot say: {_named(hint)}") from error
        default = parameter.default
        if shape is not None and default is not REQUIRED:
            default = _default(cls, name, default)
        found.append(Argument(name, shape, default, _admits_none(hint), helps.get(name, "")))
    return tuple(found)


def shape_of(hint: Any, ranges: Sequence[Range] = ()) -> Shape:
    """The shape that an annotation stands for; `ranges` apply to the numbers in it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        marks = [mark for mark in args[1:] if isinstance(mark, Range)]
        return Other(hint) if len(marks) < len(args) - 1 else shape_of(args[0], [*ranges, *marks])
    if hint is None or hint is type(None):
        return Null()
    if hint in (bool, int, float, str):
        return Scalar(hint, ranges)
    if origin is typing.Literal:
        return Choice(args)
    if origin in (typing.Union, types.UnionType):
        return Union([shape_of(arg, ranges) for arg in args])
    if origin in (list, tuple, Sequence):
        if origin is not tuple or args[1:] == (...,):
            return Items(shape_of(args[0], ranges), list if origin is list else tuple)
        return Row([shape_of(arg, ranges) for arg in args])
    if origin in (dict, Mapping) and args[0] is str:
        return Table(shape_of(args[1], ranges))
    if (family := registry.family_of(hint)) is not None:
        return Family(family)
    if origin is Callable and (family := registry.family_of(args[-1])) is not None:
        return Family(family, deferred=True)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return Record(hint)
    return Other(hint)


def _named(hint: Any) -> str:
    return hint.__qualname__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _admits_none(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Annotated:
        return _admits_none(typing.get_args(hint)[0])
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return any(option in (None, type(None), Any, object) or (option is not hint and _admits_none(option)) for option in options)


def _default(cls: type, name: str, default: Any) -> Any:
    """A default as YAML could say it: an object in the signature becomes the mapping that builds it."""
    if dataclasses.is_dataclass(cls):
        field = next((field for field in dataclasses.fields(cls) if field.name == name), None)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
    return _said(default)


def _said(value: Any) -> Any:
    if isinstance(value, type) and (named := registry.kind_of(value)) is not None:
        return {"kind": named[1]}
    kind = registry.kind_of(type(value))
    if kind is not None or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        names = [argument.name for argument in arguments_of(type(value)) if argument.shape is not None]
        return ({"kind": kind[1]} if kind else {}) | {name: _said(getattr(value, name)) for name in names}
    if isinstance(value, (list, tuple)):
        return [_said(entry) for entry in value]
    return {key: _said(entry) for key, entry in value.items()} if isinstance(value, dict) else plain(value)


def first_line(cls: type) -> str:
    """The first line of a class's own docstring, or nothing."""
    doc = cls.__dict__.get("__doc__") or ""
    automatic = dataclasses.is_dataclass(cls) and doc.startswith(f"{cls.__name__}(")
    return "" if automatic or not doc.strip() else inspect.cleandoc(doc).splitlines()[0]


def argument_docs(cls: type) -> dict[str, str]:
    """What the `Args:` section in the docstring of `cls`, of its bases or of its `__init__` says of each argument."""
    found: dict[str, str] = {}
    for doc in (*(base.__dict__.get("__doc__") for base in reversed(cls.__mro__)), cls.__init__.__doc__):
        section = re.search(r"^Args:\n((?:[ ].*\n?|\n)*)", inspect.cleandoc(doc or ""), re.MULTILINE)
        for entry in re.finditer(r"^  +(\w+)[^:\n]*: (.*(?:\n {3,}.*)*)", section[1] if section else "", re.MULTILINE):
            found[entry[1]] = " ".join(entry[2].split())
    return found


# Shapes that hold components.


class Record(Shape):
    """A plain dataclass, written as a mapping of its fields."""

    def __init__(self, cls: type, name: str | None = None) -> None:
        self.cls, self.name = cls, name or cls.__name__

    def text(self) -> str:
        return f"a mapping with the keys {', '.join(argument.name for argument in arguments_of(self.cls) if argument.shape)}"

    def check(self, node: Node, path: str, report: Report) -> Any:
        if not isinstance(node.value, dict):
            return report.add(node, path, f"expected {self.text()}, got {node.shown()}")
        return component(self.cls, self.name, None, node, path, report)

    def json(self) -> Json:
        return arguments_json(self.cls)

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, dict)


class Family(Shape):
    """A component of a family, written as a mapping with its `kind`, or as the kind alone where the defaults will do.

    It is built at once or, `deferred`, becomes a function that builds it: see `Component.build`.
    """

    def __init__(self, family: str, deferred: bool = False) -> None:
        self.family, self.deferred = family, deferred

    def text(self) -> str:
        noun = {"data": "a data source", "optim": "an optimizer", "linear": "a linear solver"}.get(self.family, f"a {self.family}")
        return f"{noun} (kind: {', '.join(self.names())})"

    def check(self, node: Node, path: str, report: Report) -> Any:
        if isinstance(node.value, str):
            kind, place = node, path
        elif not isinstance(node.value, dict):
            return report.add(node, path, f"expected {self.text()}, got {node.shown()}")
        elif "kind" in node.value:
            kind, place = node.value["kind"], f"{path}.kind"
        else:
            misspelt = difflib.get_close_matches("kind", list(node.value), n=1)
            instead = f" (there is {misspelt[0]!r})" if misspelt else ""
            return report.add(node, path, f"the key 'kind' is missing{instead}; expected {self.text()}")
        if not isinstance(kind.value, str):
            return report.add(kind, place, f"expected one of {', '.join(self.names())}, got {kind.shown()}")
        try:
            cls = registry.resolve(self.family, kind.value)
        except UserError as error:
            return report.add(kind, place, str(error))
        return component(cls, self.family, kind.value, node, path, report, self.deferred)

    def json(self) -> Json:
        return {"$ref": f"#/$defs/{self.family}"}

    def fits(self, node: Node) -> bool:
        return isinstance(node.value, dict) or node.value in self.names()

    def names(self) -> Sequence[str]:
        return registry.kinds(self.family)


def component(cls: type, family: str, kind: str | None, node: Node, path: str, report: Report, deferred: bool = False) -> Component | None:
    """The component that `node`, a mapping or the name of a kind, describes."""
    try:
        arguments = arguments_of(cls)
    except TypeError as error:
        report.add(node, path, str(error))
        return None
    entries = node.value if isinstance(node.value, dict) else {}
    given = {key: entry for key, entry in entries.items() if kind is None or key != "kind"}
    values = check_arguments(arguments, dataclasses.replace(node, value=given), path, report)
    places = {"": node.where} | {key: entry.where for key, entry in entries.items()}
    runtime = tuple(RuntimeArgument(a.name, a.admits_none, a.default is not REQUIRED) for a in arguments if a.shape is None)
    return Component(family, kind, values, cls, deferred, runtime, path, places, report.data)


def check_arguments(arguments: Sequence[Argument], node: Node, path: str, report: Report, also: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a mapping, key by key, defaults filled in; unknown and missing keys go to `report`, which suggests `also` too."""
    prefix = f"{path}." if path else ""
    known = {argument.name: argument for argument in arguments}
    settable = [name for name, argument in known.items() if argument.shape is not None]
    for key, entry in node.value.items():
        if key in settable:
            continue
        if key in known:
            report.add(entry, prefix + key, "comes from the data or the trainer, not from the config; remove it")
        else:
            names = [*settable, *also]
            report.add(entry, prefix + key, f"unknown key {key!r}{suggest(key, names)} ({_known(names)})")
    values: dict[str, Any] = {}
    for name in settable:
        argument = known[name]
        assert argument.shape is not None
        if name in node.value:
            values[name] = argument.shape.check(node.value[name], prefix + name, report)
        elif argument.default is REQUIRED:
            report.add(node, prefix + name, f"missing; expected {argument.shape.text()}")
        else:
            values[name] = argument.shape.check(from_python(argument.default, node.where), prefix + name, report)
    return values


def _known(names: Sequence[str]) -> str:
    return f"known: {', '.join(names)}" if names else "there is nothing to set here"


def arguments_json(cls: type, kind: str | None = None) -> Json:
    """JSON schema of the mapping that describes `cls`."""
    properties: Json = {"kind": {"const": kind}} if kind else {}
    required = ["kind"] if kind else []
    for argument in arguments_of(cls):
        if argument.shape is None:
            continue
        properties[argument.name] = argument.shape.json() | ({"description": argument.help} if argument.help else {})
        if argument.default is REQUIRED:
            required.append(argument.name)
        else:
            properties[argument.name]["default"] = argument.default
    schema: Json = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return ({"description": first_line(cls)} if first_line(cls) else {}) | schema
