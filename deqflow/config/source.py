"""YAML 1.2 text -> a tree of values, each of which knows the line it stands on.

The grammar is read by ruamel.yaml; which plain words are numbers, truth values or null is decided here, by the core schema of
YAML 1.2: `1e-4` is a number, `on`, `off`, `yes` and `no` are text.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from deqflow.config.errors import ConfigError, Problem, Where

# A config is some hundred lines. These bounds are far from any real one, and keep a wrong file, or a few lines of aliases that
# stand for millions of entries, from filling the memory.
_MAX_BYTES = 1_000_000
_MAX_NODES = 20_000
MAX_DEPTH = 40
_MAX_DIGITS = 100

_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_WORDS = {
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclasses.dataclass(frozen=True)
class Node:
    """A value of a config, with its place.

    Attributes:
      value: `None`, a bool, int, float or str, or a list or a dict (by key) of nodes.
      where: the line of its key, or of itself in a list.
      size: number of values in it, aliases written out.
      height: number of levels below it.
    """

    value: Any
    where: Where
    size: int = 1
    height: int = 0

    def plain(self) -> Any:
        """The value without places: nested lists and dicts."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def shown(self) -> str:
        """The value in a message, cut where it is long."""
        match self.value:
            case dict():
                return "a mapping" if self.value else "an empty mapping"
            case list():
                return "a list" if self.value else "an empty list"
            case None:
                return "nothing (null)"
            case str() if len(self.value) > 60:
                return repr(self.value[:57] + "...")
        return str(self.value).lower() if isinstance(self.value, bool) else repr(self.value)


def fail(where: Where, message: str, path: str = "") -> NoReturn:
    """Raise the one problem that ends the reading of a config."""
    raise ConfigError([Problem(where, path, message)])


def read(path: Path) -> Node:
    """The tree of a YAML file.

    Raises:
      ConfigError: if the file cannot be read, is not text, or is not YAML.
    """
    where = Where(str(path))
    try:
        unfit = _unfit(path)
        data = b"" if unfit else path.read_bytes()
    except OSError as error:
        fail(where, f"cannot be read: {error.strerror or error}")
    if unfit:
        fail(where, unfit)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fail(where, f"is not a text file in UTF-8 (byte 0x{data[error.start]:02x} at position {error.start}), expected a YAML file")
    if "\0" in text:
        fail(where, f"is a binary file (a null byte at position {text.index(chr(0))}), expected a YAML file")
    return parse_yaml(text, str(path))


def _unfit(path: Path) -> str:
    """Why `path` cannot be a config, seen from outside; nothing if it can."""
    if not os.path.exists(path):
        if os.path.islink(path):
            return f"is a link that leads nowhere ({os.readlink(path)!r}), expected a YAML file"
        return f"no such file{_near(path)}"
    if path.is_dir():
        inside = path / "config.yaml"
        return "is a directory, expected a YAML file" + (f"; did you mean {str(inside)!r}?" if inside.is_file() else "")
    if not path.is_file():
        return "is not a regular file, expected a YAML file"
    size = path.stat().st_size
    return f"has {size / 1e6:.1f} MB, expected a YAML file of at most {_MAX_BYTES / 1e6:g} MB" if size > _MAX_BYTES else ""


def _near(path: Path) -> str:
    """Nearest file name beside `path`, as a question."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""


def parse_yaml(text: str, name: str, *, where: Where | None = None) -> Node:
    """The tree of a YAML text.

    Args:
      text: one YAML document.
      name: what messages call the text, a file's name for instance.
      where: the place of every value, instead of lines of the text.

    Raises:
      ConfigError: if `text` is not YAML, or too large or too deep to be a config.
    """
    return _Composer(_events(text, name, where), name, where).document()


def _events(text: str, name: str, where: Where | None) -> Iterator[Any]:
    """The parser's events; what it cannot parse becomes a `ConfigError`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        hint = " (indent with spaces: YAML allows no tabs)" if "'\\t'" in problem else ""
        fail(where or Where(name, mark and mark.line + 1), f"not valid YAML: {problem}{hint}")
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        fail(where or Where(name, line), f"not valid YAML: the character {_char(error.character)} is not allowed in a text")
    except Exception as error:  # the parser's own slips on malformed escapes and directives
        fail(where or Where(name), f"not valid YAML: {' '.join(str(error).split())}")


def _char(character: int | str | bytes) -> str:
    return repr(chr(character) if isinstance(character, int) else character)


class _Composer:
    """Builds the tree from the parser's events; `Node`s of an anchor are shared by its aliases."""

    def __init__(self, events: Iterator[Any], name: str, where: Where | None) -> None:
        self.events, self.name, self.where = events, name, where
        self.anchors: dict[str, Node] = {}

    def document(self) -> Node:
        next(self.events)  # start of the stream
        event = next(self.events)
        if type(event).__name__ == "StreamEndEvent":
            return Node(None, self.where or Where(self.name))
        root = self.node(next(self.events), 0)
        next(self.events)  # end of the document
        event = next(self.events)
        if type(event).__name__ != "StreamEndEvent":
            fail(self.place(event), "a second YAML document begins here, expected one only")
        return dataclasses.replace(root, where=self.where or Where(self.name))  # the whole file

    def place(self, event: Any) -> Where:
        return self.where or Where(self.name, event.start_mark.line + 1)

    def node(self, event: Any, depth: int) -> Node:
        kind, where = type(event).__name__, self.place(event)
        if kind == "AliasEvent" and event.anchor not in self.anchors:
            fail(where, f"the alias *{event.anchor} has no anchor &{event.anchor} that is complete before it")
        known = self.anchors[event.anchor] if kind == "AliasEvent" else None
        if depth + (known.height if known else 0) > MAX_DEPTH:
            fail(where, f"nested deeper than {MAX_DEPTH} levels")
        if known:
            return known
        tag = event.tag
        if tag not in (None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            fail(where, f"the tag {tag.replace('tag:yaml.org,2002:', '!!')} is not understood; write the value without it")
        if kind == "ScalarEvent":
            text = tag is not None or not event.implicit[0]  # quoted, a block, or tagged as text
            node = Node(event.value if text else resolve(event.value), where)
        else:
            node = self.mapping(where, depth) if kind == "MappingStartEvent" else self.sequence(where, depth)
        if node.size > _MAX_NODES:
            fail(where, f"holds more than {_MAX_NODES} values (aliases written out), too many for a config")
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def sequence(self, where: Where, depth: int) -> Node:
        nodes = []
        while type(event := next(self.events)).__name__ != "SequenceEndEvent":
            nodes.append(self.node(event, depth + 1))
        return _collection(nodes, nodes, where)

    def mapping(self, where: Where, depth: int) -> Node:
        nodes: dict[str, Node] = {}
        while type(event := next(self.events)).__name__ != "MappingEndEvent":
            place = self.place(event)
            if type(event).__name__ != "ScalarEvent":
                fail(place, "a key must be a word, not a list, a mapping or an alias")
            key = event.value
            if key in nodes:
                fail(place, f"the key {key!r} stands here twice (first: {nodes[key].where})")
            if key == "<<" and event.implicit[0]:
                fail(place, "merge keys (<<) are not part of YAML 1.2; write the keys out, or use 'extends'")
            nodes[key] = dataclasses.replace(self.node(next(self.events), depth + 1), where=place)
        return _collection(nodes, nodes.values(), where)


def _collection(value: Any, nodes: Collection[Node], where: Where) -> Node:
    size, height = sum(node.size for node in nodes), max((node.height for node in nodes), default=0)
    return Node(value, where, 1 + size, 1 + height)


def resolve(text: str) -> Any:
    """A plain (unquoted) word as the core schema of YAML 1.2 reads it.

    Example:
      >>> resolve("1e-4"), resolve("0x10"), resolve("on"), resolve("~")
      (0.0001, 16, 'on', None)
    """
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _MAX_DIGITS:  # longer than any number: text
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL_HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinite := _INFINITE.fullmatch(text):
        return float(infinite[1] + "inf")
    return float("nan") if text in (".nan", ".NaN", ".NAN") else text


def from_python(value: Any, where: Where, depth: int = 0) -> Node:
    """The tree of nested Python dicts, lists and scalars.

    Raises:
      ConfigError: if it holds anything that YAML could not say.
    """
    if depth > MAX_DEPTH:
        fail(where, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                fail(where, f"a key must be text, got {key!r}")
        return Node({key: from_python(entry, where, depth + 1) for key, entry in value.items()}, where)
    if isinstance(value, (list, tuple)):
        return Node([from_python(entry, where, depth + 1) for entry in value], where)
    if isinstance(value, os.PathLike):
        return Node(os.fspath(value), where)
    if value is None or isinstance(value, (bool, int, float, str)):
        return Node(value, where)
    fail(where, f"expected text, numbers, true, false, null, lists and mappings, got {type(value).__module__}.{type(value).__qualname__}")
