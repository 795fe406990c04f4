"""A whole config: its sections, how it is read, and how it is written back."""

import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deqflow.config.component import Component, plain
from deqflow.config.emit import emit
from deqflow.config.errors import ConfigError, Problem, Where
from deqflow.config.merge import extend, override, read_chain
from deqflow.config.signature import REQUIRED, Argument, Family, Record, check_arguments
from deqflow.config.source import Node, from_python, parse_yaml
from deqflow.config.values import Items, Report, Scalar
from deqflow.registry import Range

# By name, since `train` stands above `config` in the order of imports.
_TRAIN = "deqflow.train.settings:TrainSettings"


@dataclasses.dataclass(frozen=True)
class Config:
    """A checked config.

    Attributes:
      seed: of all randomness.
      data: where examples come from.
      model: the network.
      task: what it is trained for.
      optim: how parameters are updated.
      train: how long, and how often to log, evaluate and save.
      plugins: modules with components of the user's own.
      files: the file that was read, then those that it extends; not part of what the config says.
    """

    seed: int
    data: Component
    model: Component
    task: Component
    optim: Component
    train: Component
    plugins: tuple[str, ...] = ()
    files: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The config as nested dicts, lists and scalars, every default written out."""
        said = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self) if field.name != "files"}
        return said if self.plugins else {key: value for key, value in said.items() if key != "plugins"}

    def dump(self) -> str:
        """The config as YAML, every default written out; `parse(config.dump()) == config`."""
        return emit(self.to_dict())


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file.

    Args:
      path: the file.
      overrides: settings laid over it, such as `model.solver.rtol=1e-4`; values are YAML.

    Raises:
      ConfigError: with all that is wrong, each with its file, line and path in the config.
    """
    root, files = read_chain(Path(path))
    return _checked(root, overrides, files)


def parse(source: str | Mapping[str, Any], overrides: Sequence[str] = (), name: str = "config") -> Config:
    """The config in a YAML text or in nested dicts.

    Args:
      source: YAML 1.2, or what it would be read to. `extends` is relative to the current directory.
      overrides: settings laid over it, such as `model.solver.rtol=1e-4`.
      name: what messages call it.

    Raises:
      ConfigError: with all that is wrong.

    Example:
      >>> text = '''
      ... data: {kind: digits, batch_size: 128}
      ... model: {kind: deq_classifier, width: 32, solver: anderson}
      ... task: classification
      ... optim: {kind: adamw, lr: 1e-3}
      ... train: {steps: 1000}
      ... '''
      >>> config = parse(text, ["model.solver.rtol=1e-3"])
      >>> config.model.arguments["solver"].build().rtol
      0.001
      >>> parse(config.dump()) == config
      True
      >>> parse(text, ["model.solver.histroy=3"])
      Traceback (most recent call last):
      deqflow.config.errors.ConfigError: override 'model.solver.histroy=3': model.solver.histroy: unknown key 'histroy'; did you mean ...
    """
    root = parse_yaml(source, name) if isinstance(source, str) else from_python(source, Where(name))
    root, files = extend(root, Path(), [])
    return _checked(root, overrides, files)


def sections() -> tuple[Argument, ...]:
    """The top level of a config."""
    module, _, name = _TRAIN.partition(":")
    settings = getattr(importlib.import_module(module), name)
    return (
        Argument("seed", Scalar(int, [Range(ge=0, lt=2**32)]), 0, False, "of all randomness"),
        *(Argument(family, Family(family), REQUIRED, False, "") for family in ("data", "model", "task", "optim")),
        Argument("train", Record(settings, "train"), {}, False, ""),
        Argument("plugins", Items(Scalar(str), tuple), [], False, "modules with components of your own, imported first"),
    )


def _checked(root: Node, overrides: Sequence[str], files: tuple[str, ...]) -> Config:
    """The config in a tree, once its plugins are imported."""
    if isinstance(overrides, str):
        raise TypeError("expected a list of overrides, got one string")
    root, problems = override(root, overrides)
    data = root.value.get("data")
    kind = data.value.get("kind") if data is not None and isinstance(data.value, dict) else data
    report = Report(f"data {kind.value}" if kind is not None and isinstance(kind.value, str) else "the data", problems)
    if "plugins" in root.value:
        _import_plugins(root.value["plugins"], report)
    values = check_arguments(sections(), root, "", report, also=("extends",))
    if report.problems:
        raise ConfigError(sorted(report.problems, key=_reading_order))
    return Config(**values, files=files)


def _reading_order(problem: Problem) -> tuple[bool, str, int]:
    """Files from top to bottom, then overrides in the order given."""
    where = problem.where
    return (True, "", 0) if where.source.startswith("override ") else (False, where.source, where.line or 0)


def _import_plugins(node: Node, report: Report) -> None:
    """Import the modules that `node` lists; a failure ends the reading, since without them other names would be unknown too."""
    failed = len(report.problems)
    names = Items(Scalar(str), tuple).check(node, "plugins", report)
    if len(report.problems) > failed:
        raise ConfigError(report.problems)
    for i, (name, entry) in enumerate(zip(names, node.value, strict=True)):
        message = _import_plugin(name, entry.where)
        if message:
            report.add(entry, f"plugins.{i}", message)
    if len(report.problems) > failed:
        raise ConfigError(report.problems)


def _import_plugin(name: str, where: Where) -> str:
    """Import a module from the current directory, the directory of the file that names it, or what is installed; say what failed."""
    if not all(part.isidentifier() for part in name.split(".")):
        return f"expected the dotted name of a module, such as my_package.cells, got {name!r}"
    folders = [os.getcwd()] + ([os.path.dirname(os.path.abspath(where.source))] if where.line is not None else [])
    folders = list(dict.fromkeys(folders))
    before = list(sys.path)
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            return f"no module {error.name!r} in {', '.join(folders)}, nor among the installed packages"
        package = os.path.dirname(os.path.dirname(__file__))
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(package)]
        # An environment often lives in the current directory, and what is installed there is not the user's own.
        frames = [frame for frame in ours if frame.filename.startswith(tuple(folders)) and "site-packages" not in frame.filename]
        spot = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames and not isinstance(error, SyntaxError) else ""
        return f"importing {name!r} fails: {type(error).__name__}: {' '.join(str(error).split())}{spot}"
    finally:
        sys.path[:] = before
    return ""


def differences(a: Config, b: Config) -> list[tuple[str, Any, Any]]:
    """The entries in which two configs differ, as `(path, value in a, value in b)`; `None` where one has no such entry."""
    ours, theirs = dict(_leaves(a.to_dict())), dict(_leaves(b.to_dict()))
    return [(path, ours.get(path), theirs.get(path)) for path in ours | theirs if ours.get(path) != theirs.get(path)]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _leaves(entry, f"{path}.{key}" if path else str(key))
    if not entries:
        yield path, value
