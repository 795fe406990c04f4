"""A checked piece of config: the recipe of one object."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pydantic_core

from deqflow.config.errors import ConfigError, Problem, Where

# What a component may want to know of the data, and what it means that the data does not say.
_WANTS = {
    "classes": ("the number of classes", "has no labels"),
    "class_names": ("the names of the classes", "has none"),
    "levels": ("integer-valued examples", "has real-valued ones"),
    "entropy": ("the entropy of the true density", "does not know it"),
}


@dataclasses.dataclass(frozen=True)
class RuntimeArgument:
    """An argument that is known only when the object is built: its name, and whether it may be `None` or left out."""

    name: str
    admits_none: bool
    optional: bool


@dataclasses.dataclass(frozen=True)
class Component:
    """The recipe of one object.

    Attributes:
      family: `model`, `solver`, ...; for a plain dataclass that is nested in another component, the name of its class.
      kind: which member of the family; `None` where there is no choice (`train`, nested dataclasses).
      arguments: every argument of the class that a config may set, defaults filled in; components among them.
      cls: the class.
      deferred: whether `build` makes the object, or a function that makes it.
      runtime: its other arguments.
      path: its place in the config, `model.solver`.
      places: where the text stands, for messages: of the component (under `""`) and of each argument that is written out.
      data: the config's data in words, for messages.
    """

    family: str
    kind: str | None
    arguments: Mapping[str, Any]
    cls: type = dataclasses.field(repr=False)
    deferred: bool = dataclasses.field(default=False, repr=False)
    runtime: tuple[RuntimeArgument, ...] = dataclasses.field(default=(), compare=False, repr=False)
    path: str = dataclasses.field(default="", compare=False, repr=False)
    places: Mapping[str, Where] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    data: str = dataclasses.field(default="the data", compare=False, repr=False)

    def build(self, **runtime: Any) -> Any:
        """The object: the class called with `arguments`, components among them built first.

        Where the argument that it is for wants a function, `Callable[..., Cell]`, it is one: called with what is marked `FromRuntime`
        (the width that a model gives its cell), it makes the object.

        Args:
          **runtime: values for the arguments marked `FromRuntime`, by name; names that no component asks for are ignored.

        Raises:
          ConfigError: if the class refuses its arguments, or needs something of the data that the data does not have.
        """
        built = {name: _built(value, runtime) for name, value in self.arguments.items()}
        if self.deferred:
            return lambda **rest: self._made(built | rest)
        for argument in self.runtime:
            built |= self._from_runtime(argument, runtime)
        return self._made(built)

    def _made(self, built: Mapping[str, Any]) -> Any:
        try:
            return self.cls(**built)
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            message = " ".join(str(error).split()) or type(error).__name__
            name = message.partition(" ")[0]  # "history must be >= 1, got 0" concerns the argument `history`
            if name not in self.arguments:
                raise self._error("", self.path, message) from error
            raise self._error(name, f"{self.path}.{name}", message) from error

    def _error(self, place: str, path: str, message: str) -> ConfigError:
        where = self.places.get(place) or self.places.get("") or Where("config")
        return ConfigError([Problem(where, path, message)])

    def _from_runtime(self, argument: RuntimeArgument, runtime: Mapping[str, Any]) -> dict[str, Any]:
        given = argument.name in runtime
        if given and (runtime[argument.name] is not None or argument.admits_none):
            return {argument.name: runtime[argument.name]}
        if argument.optional:
            return {}
        wanted, lacking = _WANTS.get(argument.name, (f"{argument.name!r}", "does not say it"))
        lacking = f"{self.data} {lacking}" if given else "it was not passed to build()"
        who = f"{self.family} {self.kind}" if self.kind else self.family
        raise self._error("kind", f"{self.path}.kind" if self.kind else self.path, f"{who} needs {wanted}, and {lacking}")


def _built(value: Any, runtime: Mapping[str, Any]) -> Any:
    match value:
        case Component():
            return value.build(**runtime)
        case list() | tuple():
            return type(value)(_built(entry, runtime) for entry in value)
        case dict():
            return {key: _built(entry, runtime) for key, entry in value.items()}
    return value


def plain(value: Any) -> Any:
    """A checked value as YAML can say it: components become mappings, tuples lists."""
    match value:
        case Component():
            head = {"kind": value.kind} if value.kind else {}
            return head | {name: plain(entry) for name, entry in value.arguments.items()}
        case list() | tuple():
            return [plain(entry) for entry in value]
        case dict():
            return {key: plain(entry) for key, entry in value.items()}
        case None | bool() | int() | float() | str():
            return value
    return pydantic_core.to_jsonable_python(value)
