"""Every mistake in a config is one line that says where, what was expected, what came, and what is near."""

# ruff: noqa: E501 (a message is one line)

import dataclasses
import os
import pathlib
import pickle
from collections.abc import Callable
from typing import Annotated

import pytest

from deqflow import registry
from deqflow.config import ConfigError, load, parse
from deqflow.registry import FromRuntime

pytestmark = pytest.mark.usefixtures("fakes")


def message(text, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, overrides)
    return str(caught.value)


# (what is replaced in the config, by what, the message)
TEXTS = {
    "unknown key": (
        "rtol",
        "rtoll",
        "config:6: model.solver.rtoll: unknown key 'rtoll'; did you mean 'rtol'? (known: history, rtol, exact)",
    ),
    "unknown section": (
        "task: density",
        "task: density\nfoo: 1",
        "config:9: foo: unknown key 'foo' (known: seed, data, model, task, optim, train, plugins, extends)",
    ),
    "misspelt extends": (
        "seed: 1",
        "extend: a.yaml",
        "config:1: extend: unknown key 'extend'; did you mean 'extends'? (known: seed, data, model, task, optim, train, plugins, extends)",
    ),
    "nothing to set": ("task: density", "task: {kind: density, a: 1}", "config:8: task.a: unknown key 'a' (there is nothing to set here)"),
    "missing key": ("  width: 4\n", "", "config:3: model.width: missing; expected an integer >= 1"),
    "missing section": ("task: density\n", "", "config: task: missing; expected a task (kind: density)"),
    "missing section train": ("train: {steps: 1e3}", "", "config: train.steps: missing; expected an integer >= 1"),
    "empty section": ("task: density", "task:", "config:8: task: expected a task (kind: density), got nothing (null)"),
    "unknown kind": (
        "kind: anderson, rtol",
        "kind: andersen, rtol",
        "config:6: model.solver.kind: unknown solver 'andersen'; did you mean 'anderson'? (known: anderson, picard)",
    ),
    "unknown short kind": (
        "[picard,",
        "[pikard,",
        "config:7: model.cells.0: unknown solver 'pikard'; did you mean 'picard'? (known: anderson, picard)",
    ),
    "missing kind": (
        "{kind: anderson, rtol: 1e-4}",
        "{rtol: 1e-4}",
        "config:6: model.solver: the key 'kind' is missing; expected a solver (kind: anderson, picard)",
    ),
    "misspelt kind": (
        "{kind: moons}",
        "{kin: moons}",
        "config:2: data: the key 'kind' is missing (there is 'kin'); expected a data source (kind: moons, pictures)",
    ),
    "kind is no word": ("kind: moons", "kind: 3", "config:2: data.kind: expected one of moons, pictures, got 3"),
    "component is a number": ("{kind: moons}", "3", "config:2: data: expected a data source (kind: moons, pictures), got 3"),
    "component is a list": ("{kind: moons}", "[moons]", "config:2: data: expected a data source (kind: moons, pictures), got a list"),
    "text for integer": ("width: 4", "width: four", "config:5: model.width: expected an integer >= 1, got 'four'"),
    "quoted integer": ("width: 4", "width: '4'", "config:5: model.width: expected an integer >= 1, got '4' (text: remove the quotes)"),
    "fraction for integer": ("width: 4", "width: 4.5", "config:5: model.width: expected an integer >= 1, got 4.5"),
    "truth value for integer": ("width: 4", "width: true", "config:5: model.width: expected an integer >= 1, got true"),
    "truth value for number": ("1e-4", "false", "config:6: model.solver.rtol: expected a number > 0, got false"),
    "number out of range": ("1e-4", "-1e-4", "config:6: model.solver.rtol: expected a number > 0, got -0.0001"),
    "integer out of range": ("width: 4", "width: 0", "config:5: model.width: expected an integer >= 1, got 0"),
    "integer too large": (
        "width: 4",
        "width: 99999999999999999999",
        "config:5: model.width: expected an integer >= 1 of at most 64 bits, got 99999999999999999999",
    ),
    "infinite": ("1e-4", ".inf", "config:6: model.solver.rtol: expected a number > 0 that is finite, got inf"),
    "overflow": ("1e-4", "1e999", "config:6: model.solver.rtol: expected a number > 0 that is finite, got inf"),
    "not a number": ("1e-4", ".nan", "config:6: model.solver.rtol: expected a number > 0, got nan"),
    "not a number, no range": (
        "{kind: moons}",
        "{kind: moons, noise: .nan}",
        "config:2: data.noise: expected a number that is finite, got nan",
    ),
    "number for truth value": ("rtol: 1e-4", "exact: 1", "config:6: model.solver.exact: expected true or false, got 1"),
    "yes for truth value": (
        "rtol: 1e-4",
        "exact: yes",
        "config:6: model.solver.exact: expected true or false, got 'yes' (text in YAML 1.2)",
    ),
    "number for text": (
        "{kind: moons}",
        "{kind: moons, name: 5}",
        "config:2: data.name: expected text or null, got 5 (put it in quotes)",
    ),
    "null": ("width: 4", "width: null", "config:5: model.width: expected an integer >= 1, got nothing (null)"),
    "mapping for number": ("1e-4", "{a: 1}", "config:6: model.solver.rtol: expected a number > 0, got a mapping"),
    "choice": (
        "width: 4",
        "width: 4\n  norm: grup",
        "config:6: model.norm: expected one of 'group', 'layer', got 'grup'; did you mean 'group'?",
    ),
    "list expected": (
        "[picard, {kind: anderson}]",
        "picard",
        "config:7: model.cells: expected a list, each entry a solver (kind: anderson, picard), got 'picard'",
    ),
    "inside a list": (
        "{kind: anderson}]",
        "{kind: anderson, history: 0}]",
        "config:7: model.cells.1.history: expected an integer >= 1, got 0",
    ),
    "optional component": (
        "width: 4",
        "width: 4\n  fallback: 3",
        "config:6: model.fallback: expected a solver (kind: anderson, picard) or null, got 3",
    ),
    "inside an optional component": (
        "width: 4",
        "width: 4\n  fallback: {kind: picard, dampin: 1}",
        "config:6: model.fallback.dampin: unknown key 'dampin'; did you mean 'damping'? (known: damping)",
    ),
    "number or component": (
        "{kind: cosine, peak: 1e-3}",
        "-1",
        "config:11: optim.lr: expected a number > 0 or a schedule (kind: cosine), got -1",
    ),
    "number or component, misspelt": (
        "{kind: cosine, peak: 1e-3}",
        "cosin",
        "config:11: optim.lr: expected a number > 0 or a schedule (kind: cosine), got 'cosin'; did you mean 'cosine'?",
    ),
    "short form without required": ("{kind: cosine, peak: 1e-3}", "cosine", "config:11: optim.lr.peak: missing; expected a number > 0"),
    "runtime argument": (
        "width: 4",
        "width: 4\n  classes: 10",
        "config:6: model.classes: comes from the data or the trainer, not from the config; remove it",
    ),
    "row of wrong length": (
        "{kind: moons}",
        "{kind: pictures, crop: {size: 1, anchor: [1]}}",
        "config:2: data.crop.anchor: expected a list of 2 entries, each a number, got a list of 1",
    ),
    "record expected": (
        "{kind: moons}",
        "{kind: pictures, crop: 5}",
        "config:2: data.crop: expected a mapping with the keys size, anchor, got 5",
    ),
    "enumeration": (
        "{kind: moons}",
        "{kind: pictures, colour: pink}",
        "config:2: data.colour: input should be 'red' or 'blue', got 'pink'",
    ),
    "table expected": (
        "{kind: moons}",
        "{kind: pictures, weights: 5}",
        "config:2: data.weights: expected a mapping from names to values, each a number, got 5",
    ),
    "three alternatives": (
        "{kind: moons}",
        "{kind: pictures, number: aut}",
        "config:2: data.number: expected an integer or a number or 'auto', got 'aut'; did you mean 'auto'?",
    ),
    "plugin list": ("seed: 1", "plugins: a.b", "config:1: plugins: expected a list, each entry text, got 'a.b'"),
    "plugin name": (
        "seed: 1",
        "plugins: [a/b.py]",
        "config:1: plugins.0: expected the dotted name of a module, such as my_package.cells, got 'a/b.py'",
    ),
    "seed": ("seed: 1", "seed: -1", "config:1: seed: expected an integer >= 0 and < 4294967296, got -1"),
    "key twice": ("  width: 4", "  width: 4\n  width: 5", "config:6: the key 'width' stands here twice (first: config:5)"),
    "merge key": (
        "  width: 4",
        "  <<: {width: 4}",
        "config:5: merge keys (<<) are not part of YAML 1.2; write the keys out, or use 'extends'",
    ),
    "complex key": ("  width: 4", "  ? [a]\n  : 4", "config:5: a key must be a word, not a list, a mapping or an alias"),
    "tag": ("width: 4", "width: !!float 4", "config:5: the tag !!float is not understood; write the value without it"),
    "python tag": (
        "width: 4",
        "width: !!python/object:os.system {}",
        "config:5: the tag !!python/object:os.system is not understood; write the value without it",
    ),
    "alias without anchor": ("width: 4", "width: *w", "config:5: the alias *w has no anchor &w that is complete before it"),
    "alias to itself": (
        "{kind: moons}",
        "&d {kind: moons, name: *d}",
        "config:2: the alias *d has no anchor &d that is complete before it",
    ),
    "two documents": ("task: density", "---\ntask: density", "config:8: a second YAML document begins here, expected one only"),
    "tab": (
        "  width",
        "\twidth",
        "config:5: not valid YAML: found character '\\t' that cannot start any token (indent with spaces: YAML allows no tabs)",
    ),
    "open bracket": ("{kind: moons}", "{kind: moons", "config:3: not valid YAML: expected ',' or '}', but got ':'"),
    "control character": ("moons", "mo\x07ons", "config:2: not valid YAML: the character '\\x07' is not allowed in a text"),
    "extends a number": ("seed: 1", "extends: 1", "config:1: extends: expected the name of a YAML file, got 1"),
    "extends nothing": (
        "seed: 1",
        "extends: no/such.yaml",
        "config:1: extends: no/such.yaml: no such file",
    ),
}


@pytest.mark.parametrize("case", TEXTS)
def test_one_mistake_gives_one_line(text, case):
    old, new, expected = TEXTS[case]
    assert old in text
    assert message(text.replace(old, new, 1)) == expected


OVERRIDES = {
    "model.solver.histroy=3": (
        "override 'model.solver.histroy=3': model.solver.histroy: unknown key 'histroy'; did you mean 'history'? (known: history, rtol, exact)"
    ),
    "modle.width=3": "override 'modle.width=3': modle: unknown key 'modle'; did you mean 'model'? (known: seed, data, model, task, optim, train, plugins, extends)",
    "seed": "override 'seed': expected key=value with dots between keys, such as model.solver.rtol=1e-4",
    "=3": "override '=3': expected key=value with dots between keys, such as model.solver.rtol=1e-4",
    "model..width=3": "override 'model..width=3': expected key=value with dots between keys, such as model.solver.rtol=1e-4",
    "seed=[1": "override 'seed=[1': not valid YAML: expected ',' or ']', but got '<stream end>'",
    "seed=": "override 'seed=': seed: expected an integer >= 0 and < 4294967296, got nothing (null)",
    "seed.x=1": "override 'seed.x=1': seed: expected an integer >= 0 and < 4294967296, got a mapping",
    "model.cells.2=picard": "override 'model.cells.2=picard': model.cells.2: no such entry, the list has 2 (counted from 0)",
    "model.cells.first=1": (
        "override 'model.cells.first=1': model.cells: expected a list, each entry a solver (kind: anderson, picard), got a mapping"
    ),
    "extends=x.yaml": "override 'extends=x.yaml': extends: only a file can extend another",
    "model.solver.kind=newton": (
        "override 'model.solver.kind=newton': model.solver.kind: unknown solver 'newton' (known: anderson, picard)"
    ),
    "plugins=[no_such_module_xyz]": (
        "override 'plugins=[no_such_module_xyz]': plugins.0: no module 'no_such_module_xyz' in HERE, nor among the installed packages"
    ),
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_is_named_as_it_was_typed(text, override):
    assert message(text, override) == OVERRIDES[override].replace("HERE", os.getcwd())


def test_several_mistakes_are_shown_at_once(text):
    text = text.replace("width: 4", "width: no").replace("rtol: 1e-4", "rtoll: 1").replace("task: density\n", "")
    assert message(text, "train.every=0", "seed") == "\n  ".join(
        [
            "the config has 5 problems:",
            "config: task: missing; expected a task (kind: density)",
            "config:5: model.width: expected an integer >= 1, got 'no'",
            "config:6: model.solver.rtoll: unknown key 'rtoll'; did you mean 'rtol'? (known: history, rtol, exact)",
            "override 'seed': expected key=value with dots between keys, such as model.solver.rtol=1e-4",
            "override 'train.every=0': train.every: expected an integer >= 1, got 0",
        ]
    )


def test_an_error_survives_pickling(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, ["seed=x", "train.steps=0"])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_long_list_of_mistakes_is_cut(text):
    lines = message(text, f"model.cells=[{', '.join(['x'] * 50)}]").splitlines()
    assert lines[0] == "the config has 50 problems:"
    assert len(lines) == 22
    assert lines[-1] == "  ... and 30 more"


# Files.


def _nothing(path: pathlib.Path) -> None:
    path.with_name("confih.yaml").write_text("")


def _cycle(path: pathlib.Path) -> None:
    path.write_text("extends: b.yaml\n")
    path.with_name("b.yaml").write_text(f"\nextends: {path.name}\n")


def _chain(path: pathlib.Path) -> None:
    path.write_text("extends: 0.yaml\n")
    for i in range(60):
        path.with_name(f"{i}.yaml").write_text(f"extends: {i + 1}.yaml\n")


def _tower(path: pathlib.Path) -> None:
    path.write_text("a0: &a0 x\n" + "".join(f"a{i}: &a{i} {'[' * 30}*a{i - 1}{']' * 30}\n" for i in range(1, 300)))


def _bomb(path: pathlib.Path) -> None:
    path.write_text("a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)))


FILES: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "missing": (_nothing, "PATH: no such file; did you mean 'DIR/confih.yaml'?"),
    "directory": (lambda path: path.mkdir(), "PATH: is a directory, expected a YAML file"),
    "run directory": (
        lambda path: (path.mkdir(), (path / "config.yaml").write_text("")),
        "PATH: is a directory, expected a YAML file; did you mean 'PATH/config.yaml'?",
    ),
    "device": (lambda path: path.symlink_to("/dev/null"), "PATH: is not a regular file, expected a YAML file"),
    "loop of links": (lambda path: path.symlink_to(path), "PATH: is a link that leads nowhere ('PATH'), expected a YAML file"),
    "not UTF-8": (
        lambda path: path.write_bytes(b"a: \xff"),
        "PATH: is not a text file in UTF-8 (byte 0xff at position 3), expected a YAML file",
    ),
    "binary": (lambda path: path.write_bytes(b"PK\0\0"), "PATH: is a binary file (a null byte at position 2), expected a YAML file"),
    "large": (lambda path: path.write_bytes(b" " * 2_000_000), "PATH: has 2.0 MB, expected a YAML file of at most 1 MB"),
    "empty": (lambda path: path.write_text(""), "PATH: is empty, expected a mapping with the sections data, model, task, optim and train"),
    "comments": (
        lambda path: path.write_text("# nothing\n---\n# more\n"),
        "PATH: is empty, expected a mapping with the sections data, model, task, optim and train",
    ),
    "list": (
        lambda path: path.write_text("- a\n"),
        "PATH: holds a list, expected a mapping with the sections data, model, task, optim and train",
    ),
    "word": (
        lambda path: path.write_text("hello\n"),
        "PATH: holds 'hello', expected a mapping with the sections data, model, task, optim and train",
    ),
    "cycle": (_cycle, "DIR/b.yaml:2: extends: a circle: PATH extends DIR/b.yaml extends PATH"),
    "itself": (lambda path: path.write_text(f"extends: {path.name}\n"), "PATH:1: extends: a circle: PATH extends PATH"),
    "bad base": (
        lambda path: (path.write_text("extends: b.yaml\n"), path.with_name("b.yaml").write_text("a: [\n")),
        "DIR/b.yaml:2: not valid YAML: expected the node content, but found '<stream end>'",
    ),
    "base is a directory": (
        lambda path: path.write_text("extends: .\n"),
        "PATH:1: extends: DIR: is a directory, expected a YAML file; did you mean 'DIR/config.yaml'?",
    ),
    "alias bomb": (_bomb, "PATH:5: holds more than 20000 values (aliases written out), too many for a config"),
    "chain": (_chain, "DIR/39.yaml:1: extends: the last of more than 40 configs that extend one another"),
    "nesting by aliases": (_tower, "PATH:3: nested deeper than 40 levels"),
    "nesting": (lambda path: path.write_text("a: " + "[" * 100_000), "PATH:1: nested deeper than 40 levels"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_config_gives_one_line(tmp_path, case):
    make, expected = FILES[case]
    path = tmp_path / "config.yaml"
    make(path)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == expected.replace("PATH", str(path)).replace("DIR", str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("")
    path.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load(path)


def test_a_name_with_a_null_byte():
    with pytest.raises(ConfigError, match="no such file"):
        load("a\0b")


# Plugins.

PLUGINS = {
    "raises": ("x = 1\nx / 0\n", "importing 'NAME' fails: ZeroDivisionError: division by zero (DIR/NAME.py:2)"),
    "exits": ("raise SystemExit(3)\n", "importing 'NAME' fails: SystemExit: 3 (DIR/NAME.py:1)"),
    "syntax": ("def\n", "importing 'NAME' fails: SyntaxError: invalid syntax (NAME.py, line 1)"),
    "imports what is not there": (
        "import no_such_module_abc\n",
        "importing 'NAME' fails: ModuleNotFoundError: No module named 'no_such_module_abc' (DIR/NAME.py:1)",
    ),
    "takes a name": (
        "from deqflow.registry import register\n@register('solver', 'picard')\nclass Mine: pass\n",
        "importing 'NAME' fails: ValueError: solver 'picard' is already registered, as CONFTEST:Picard (DIR/NAME.py:2)",
    ),
}


@pytest.mark.parametrize("case", PLUGINS)
def test_a_plugin_that_fails_gives_one_line(text, tmp_path, case):
    source, expected = PLUGINS[case]
    name = f"plugin_that_{case.replace(' ', '_')}"
    (tmp_path / f"{name}.py").write_text(source)
    path = tmp_path / "config.yaml"
    path.write_text(f"{text}plugins: [{name}]\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    conftest = registry.resolve("solver", "picard").__module__
    expected = expected.replace("NAME", name).replace("DIR", str(tmp_path)).replace("CONFTEST", conftest)
    assert str(caught.value) == f"{path}:13: plugins.0: {expected}"


# Components that a config cannot describe, which is their author's mistake.


class NoAnnotation:
    """Bad."""

    def __init__(self, a=1):
        pass


class NoName:
    """Bad."""

    def __init__(self, *args: int):
        pass


class NoSchema:
    """Bad."""

    def __init__(self, f: Callable[[int], int] = abs):
        pass


@dataclasses.dataclass
class BadDefault:
    """Bad."""

    a: int = "x"  # pyright: ignore


class NoSuchName:
    """Bad."""

    def __init__(self, a: "Missing"):  # noqa: F821
        pass


AUTHORS = {
    NoSuchName: "the annotations of MODULE.NoSuchName cannot be read at run time: name 'Missing' is not defined",
    NoAnnotation: "argument 'a' of MODULE.NoAnnotation must have a type annotation, which is its schema",
    NoName: "argument 'args' of MODULE.NoName must be a plain keyword argument, so that a config can name it",
    NoSchema: "argument 'f' of MODULE.NoSchema has a type that a config cannot say: collections.abc.Callable[[int], int]",
    BadDefault: "expected an integer, got 'x'",
}


@pytest.mark.parametrize("cls", AUTHORS)
def test_a_component_that_no_config_can_describe(text, cls):
    registry.register("data", "bad")(cls)
    path = "data.a" if cls is BadDefault else "data"
    assert message(text, "data=bad") == f"override 'data=bad': {path}: {AUTHORS[cls].replace('MODULE', __name__)}"


def test_a_package_that_is_not_installed(text, monkeypatch):
    monkeypatch.setitem(registry._FAMILIES["data"].kinds, "remote", "no_such_package_abc.data:Remote")
    assert message(text, "data=remote") == (
        "override 'data=remote': data.kind: data 'remote' needs the package 'no_such_package_abc', which is not installed; "
        "pip install 'deqflow[train,flows]' brings what the components need"
    )


# From Python.


def test_values_that_yaml_cannot_say(text):
    tree = parse(text).to_dict()
    for value, expected in [
        ({1, 2}, "config: expected text, numbers, true, false, null, lists and mappings, got builtins.set"),
        ({3: 4}, "config: a key must be text, got 3"),
    ]:
        with pytest.raises(ConfigError) as caught:
            parse({**tree, "seed": value})
        assert str(caught.value) == expected
    ring: dict = {}
    ring["a"] = ring
    with pytest.raises(ConfigError, match="nested deeper than 40 levels"):
        parse(ring)


# Building.


def test_data_that_lacks_what_the_model_needs(text):
    with pytest.raises(ConfigError) as caught:
        parse(text).model.build(classes=None, levels=None)
    assert str(caught.value) == "config:4: model.kind: model classifier needs the number of classes, and data moons has no labels"
    with pytest.raises(ConfigError) as caught:
        parse(text).model.build()
    assert str(caught.value) == "config:4: model.kind: model classifier needs the number of classes, and it was not passed to build()"


def test_what_a_component_refuses_points_to_its_argument(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, ["model.width=3"]).model.build(classes=2, levels=None)
    assert str(caught.value) == "override 'model.width=3': model.width: width must be even, got 3"


def test_what_a_nested_component_refuses_points_to_it(text):
    @registry.register("solver", "strict")
    class Strict:
        """Refuses."""

        def __init__(self, a: int = 1, shape: Annotated[object, FromRuntime] = None):
            raise TypeError("cannot\n do that")

    config = parse(text.replace("[picard,", "[strict,"))
    with pytest.raises(ConfigError) as caught:
        config.model.build(classes=2, levels=None)
    assert str(caught.value) == "config:7: model.cells.0: cannot do that"
    assert isinstance(caught.value.__cause__, TypeError)
