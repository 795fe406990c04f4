"""What all configs may say, for editors and for `deqflow list`."""

from typing import Any

from deqflow import registry
from deqflow.config.document import sections
from deqflow.config.signature import REQUIRED, arguments_json, arguments_of, first_line


def components() -> dict[str, list[tuple[str, str]]]:
    """Every kind of every family with the first line of its docstring; imports them all."""
    return {family: [(kind, _summary(family, kind)) for kind in registry.kinds(family)] for family in registry.families()}


def _summary(family: str, kind: str) -> str:
    try:
        return first_line(registry.resolve(family, kind))
    except registry.UserError as error:
        return f"({error})"


def schema() -> dict[str, Any]:
    """JSON schema of a config: every section, every kind with its arguments, their ranges, defaults and descriptions."""
    definitions: dict[str, Any] = {}
    for family, summary in registry.families().items():
        options: list[dict[str, Any]] = []
        short = []
        for kind in registry.kinds(family):
            try:
                cls = registry.resolve(family, kind)
            except registry.UserError:  # a package that is not installed
                continue
            definitions[f"{family}.{kind}"] = arguments_json(cls, kind)
            options.append({"$ref": f"#/$defs/{family}.{kind}"})
            if all(argument.default is not REQUIRED for argument in arguments_of(cls) if argument.shape):
                short.append(kind)
        definitions[family] = {"description": summary, "anyOf": [*options, *([{"enum": short}] if short else [])]}
    properties: dict[str, Any] = {"extends": {"type": "string", "description": "a config that this one is laid over"}}
    required = []
    for argument in sections():
        assert argument.shape is not None
        help = {"description": argument.help} if argument.help else {}
        default = {} if argument.default is REQUIRED else {"default": argument.default}
        properties[argument.name] = argument.shape.json() | help | default
        if argument.default is REQUIRED or properties[argument.name].get("required"):
            required.append(argument.name)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "deqflow config",
        "type": "object",
        "properties": properties,
        # What a config does not say may stand in the config that it extends.
        "anyOf": [{"required": ["extends"]}, {"required": required}],
        "additionalProperties": False,
        "$defs": definitions,
    }
