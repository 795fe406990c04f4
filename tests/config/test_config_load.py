"""A config becomes components, components become objects, and both go back to text."""

import dataclasses
import pathlib
import pickle
import sys

import pytest
from beartype import beartype
from jaxtyping import jaxtyped

from deqflow import registry
from deqflow.config import Component, Config, ConfigError, differences, load, parse
from deqflow.config.source import parse_yaml

pytestmark = pytest.mark.usefixtures("fakes")


def test_every_default_is_filled_in(text):
    config = parse(text)
    assert (config.seed, config.plugins) == (1, ())
    assert (config.model.family, config.model.kind) == ("model", "classifier")
    assert set(config.model.arguments) == {"width", "solver", "fallback", "cells", "core", "norm"}
    assert config.model.arguments["solver"].arguments == {"history": 5, "rtol": 1e-4, "exact": False}
    assert [cell.kind for cell in config.model.arguments["cells"]] == ["picard", "anderson"]
    assert config.data.arguments == {"batch_size": 8, "noise": 0.1, "name": None}
    assert config.task.arguments == {}
    assert (config.train.family, config.train.kind) == ("train", None)
    assert config.train.arguments == {"steps": 1000, "every": 200, "ema": None}


def test_a_default_that_is_an_object_becomes_a_component(text):
    model = parse(text.replace("  solver: {kind: anderson, rtol: 1e-4}\n", "")).model
    assert model.arguments["solver"].kind == "anderson"
    assert model.arguments["solver"].arguments["history"] == 7


def test_build_constructs_nested_components_and_passes_runtime_arguments(text):
    model = parse(text).model.build(classes=10, levels=None, rngs="streams", entropy=3.0)
    assert (type(model).__name__, model.width, model.classes, model.levels, model.rngs) == ("Classifier", 4, 10, None, "streams")
    assert (type(model.solver).__name__, model.solver.rtol, model.fallback) == ("Anderson", 1e-4, None)
    assert [type(cell).__name__ for cell in model.cells] == ["Picard", "Anderson"]
    assert isinstance(model.cells, tuple)
    assert type(model.cells[0].damping) is float  # the default is the integer 1
    optimizer = parse(text).optim.build()
    assert optimizer.lr.peak == 1e-3
    assert parse(text).train.build().steps == 1000


def test_where_a_function_is_wanted_the_component_is_made_when_it_is_called(text):
    build = {"classes": 10, "levels": None}
    assert parse(text).model.build(**build).core.groups == 2
    config = parse(text, ["model.core={kind: conv, groups: 4, solver: anderson}"])
    core = config.model.build(**build).core
    assert (type(core).__name__, core.width, core.groups, core.solver.history) == ("Conv", 4, 4, 5)
    assert parse(config.dump()) == config
    with pytest.raises(ConfigError, match=r"model\.core\.groups: groups must divide the width, got 3 groups for 4"):
        parse(text, ["model.core={kind: conv, groups: 3}"]).model.build(**build)
    with pytest.raises(ConfigError, match=r"model\.core\.width: comes from the data or the trainer"):
        parse(text, ["model.core={kind: conv, width: 3}"])


def test_an_optional_runtime_argument_keeps_its_default(text):
    assert parse(text).model.build(classes=10, levels=None).rngs == "none"


def test_the_rarer_annotations(text):
    text = text.replace(
        "{kind: moons}", "{kind: pictures, colour: blue, crop: {size: 5}, path: a/b, weights: {b: 2}, limit: .inf, number: 3}"
    )
    config = parse(text)
    built = config.data.build()
    assert (built.path, built.colour.name, built.sizes) == (pathlib.Path("a/b"), "BLUE", [1, 2])
    assert (built.crop.size, built.crop.anchor, built.weights, built.limit) == (5, (0.5, 0.5), {"b": 2.0}, float("inf"))
    assert type(built.number) is int
    assert type(parse(text, ["data.number=3.0"]).data.build().number) is float
    assert parse(text, ["data.number=auto"]).data.build().number == "auto"
    assert parse(config.dump()) == config


def test_a_class_wrapped_by_runtime_type_checks_is_read_the_same():
    @registry.register("solver", "checked")
    @jaxtyped(typechecker=beartype)
    @dataclasses.dataclass(frozen=True)
    class Checked:
        """Checked at run time."""

        memory: int = 3

    solver = parse(TINY, ["model.solver=checked", "model.solver.memory=4"]).model.arguments["solver"]
    assert solver.arguments == {"memory": 4}
    assert solver.build().memory == 4


TINY = "data: moons\nmodel: {kind: classifier, width: 2}\ntask: density\noptim: {kind: adam, lr: 1}\ntrain: {steps: 1}\n"


# Round trip.


def test_the_resolved_config_round_trips(text):
    config = parse(text)
    assert parse(config.dump()) == config
    assert parse(config.to_dict()) == config
    assert parse(config.dump()).dump() == config.dump()
    assert pickle.loads(pickle.dumps(config)) == config


WORDS = ["plain", "on", "true", "null", "~", "", "012", "1e3", "0x1f", "1_000", ".inf", "a: b", "a #b", "- a", "[a]", "&a", "*a", "!a"]
WORDS += ["%a", "@a", " a ", 'a"b', "a\\b", "a\nb", "a\tb", "é", "数", "🙂", "\x85\u2028\ufeff\x7f\x00", "\ud800", "<<", "?", "a:", "="]
WORDS += ["'", "---", "...", "..", "1:30"]


@pytest.mark.parametrize("name", WORDS)
def test_any_text_round_trips(text, name):
    tree = parse(text).to_dict()
    tree["data"]["name"] = name
    config = parse(tree)
    assert config.data.arguments["name"] == name
    assert parse(config.dump()) == config


@pytest.mark.parametrize("number", [0.1, 1e-5, 1e16, 1e22, 5e-324, 1.7976931348623157e308, -0.0, 123456789.123456789])
def test_any_number_round_trips(text, number):
    tree = parse(text).to_dict()
    tree["data"]["noise"] = number
    assert repr(parse(parse(tree).dump()).data.arguments["noise"]) == repr(number)


def test_differences_lists_the_leaves_that_changed(text):
    ours = parse(text)
    theirs = parse(text, ["model.width=8", "model.solver=picard", "seed=2"])
    assert differences(ours, ours) == []
    assert {path: (a, b) for path, a, b in differences(ours, theirs)} == {
        "seed": (1, 2),
        "model.width": (4, 8),
        "model.solver.kind": ("anderson", "picard"),
        "model.solver.history": (5, None),
        "model.solver.rtol": (1e-4, None),
        "model.solver.exact": (False, None),
        "model.solver.damping": (None, 1.0),
    }


# Overrides.


def override(text, *overrides) -> Config:
    return parse(text, overrides)


def test_an_override_is_yaml(text):
    config = override(text, "model.solver.rtol=1e-3", "data.name=on", "data.noise=3", "model.solver.exact=true", "data.name='5'")
    assert config.model.arguments["solver"].arguments == {"history": 5, "rtol": 1e-3, "exact": True}
    assert (config.data.arguments["name"], config.data.arguments["noise"]) == ("5", 3.0)


def test_the_same_kind_keeps_the_settings_and_another_kind_drops_them(text):
    assert override(text, "model.solver.kind=anderson").model.arguments["solver"].arguments["rtol"] == 1e-4
    assert override(text, "model.solver=anderson").model.arguments["solver"].arguments["rtol"] == 1e-4
    for other in ("model.solver.kind=picard", "model.solver=picard", "model.solver={kind: picard}"):
        assert override(text, other).model.arguments["solver"].arguments == {"damping": 1.0}


@pytest.mark.parametrize("order", [1, -1])
def test_a_new_kind_keeps_the_settings_that_other_overrides_give(text, order):
    solver = override(text, *["model.solver.kind=picard", "model.solver.damping=0.5"][::order]).model.arguments["solver"]
    assert (solver.kind, solver.arguments) == ("picard", {"damping": 0.5})


def test_overrides_reach_into_lists_and_short_forms_and_make_what_is_missing(text):
    config = override(
        text, "model.cells.0.damping=0.25", "model.cells.1.history=2", "model.fallback.kind=picard", "model.fallback.damping=0.5"
    )
    first, second = config.model.arguments["cells"]
    assert (first.kind, first.arguments) == ("picard", {"damping": 0.25})
    assert second.arguments["history"] == 2
    assert config.model.arguments["fallback"].arguments == {"damping": 0.5}
    assert override(text, "model.cells=[picard]", "model.cells.0=anderson").model.arguments["cells"][0].kind == "anderson"
    assert override(text, "optim.lr=0.5").optim.arguments["lr"] == 0.5
    assert override(text, "optim.lr=0.5", "optim.lr={kind: cosine, peak: 2}").optim.arguments["lr"].arguments["peak"] == 2.0


def test_the_last_override_wins(text):
    assert override(text, "seed=3", "seed=4").seed == 4


# Files.


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_config_extends_others(text, tmp_path):
    base = write(tmp_path / "base.yaml", text)
    middle = write(tmp_path / "sub" / "middle.yaml", "extends: ../base.yaml\nmodel: {solver: {history: 2}, cells: []}\n")
    top = write(tmp_path / "sub" / "top.yaml", "extends: middle.yaml\nseed: 9\noptim: {lr: 0.5}\nmodel: {fallback: picard}\n")
    config = load(top)
    assert config.seed == 9
    assert config.model.arguments["solver"].arguments == {"history": 2, "rtol": 1e-4, "exact": False}
    assert config.model.arguments["cells"] == ()
    assert config.optim.arguments["lr"] == 0.5
    assert config.files == (str(top), str(middle), str(tmp_path / "sub" / ".." / "base.yaml"))
    assert load(base, ["seed=9"]) == parse(text, ["seed=9"])
    assert load(write(tmp_path / "other.yaml", "extends: base.yaml\nmodel: {solver: {kind: picard}}\n")).model.arguments[
        "solver"
    ].arguments == {"damping": 1.0}


def test_errors_point_into_the_file_that_is_at_fault(text, tmp_path):
    base = write(tmp_path / "base.yaml", text.replace("rtol: 1e-4", "rtol: -1"))
    top = write(tmp_path / "top.yaml", "extends: base.yaml\n\nmodel:\n  widht: 3\n")
    with pytest.raises(ConfigError) as caught:
        load(top, ["seed=x"])
    assert [(str(p.where), p.path) for p in caught.value.problems] == [
        (f"{base}:6", "model.solver.rtol"),
        (f"{top}:4", "model.widht"),
        ("override 'seed=x'", "seed"),
    ]


def test_plugins_bring_components(text, tmp_path, monkeypatch):
    write(tmp_path / "my_solvers_1" / "__init__.py", "")
    write(
        tmp_path / "my_solvers_1" / "newton.py",
        "import dataclasses\nfrom deqflow.registry import register\n"
        "@register('solver', 'newton')\n@dataclasses.dataclass(frozen=True)\nclass Newton:\n    tries: int = 1\n",
    )
    write(tmp_path / "here" / "my_data_1.py", "from deqflow.registry import register\n@register('data', 'mine')\nclass Mine: pass\n")
    base = write(tmp_path / "base.yaml", text + "plugins: [my_solvers_1.newton]\n")
    top = write(tmp_path / "sub" / "top.yaml", f"extends: {base}\nplugins: [my_data_1]\ndata: mine\nmodel: {{solver: newton}}\n")
    monkeypatch.chdir(tmp_path / "here")
    before = list(sys.path)
    config = load(top)
    assert sys.path == before
    assert config.plugins == ("my_solvers_1.newton", "my_data_1")
    assert type(config.data.build()).__name__ == "Mine"
    assert config.model.arguments["solver"].arguments == {"tries": 1}
    assert parse(config.dump()) == config


def test_components_are_imported_only_when_named(text, monkeypatch):
    monkeypatch.setitem(registry._FAMILIES["solver"].kinds, "broken", "deqflow_has_no_such_module:Broken")
    assert isinstance(parse(text).model, Component)


# YAML 1.2.


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("+1", 1),
        ("-0", 0),
        ("012", 12),
        ("0o17", 15),
        ("0xff", 255),
        ("-.inf", float("-inf")),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("'1'", "1"),
        ('"1"', "1"),
        ("!!str 1", "1"),
        ("|\n  1", "1\n"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".", "."),
        ("0b1", "0b1"),
        ("inf", "inf"),
    ],
)
def test_words_are_read_by_the_core_schema(word, value):
    got = parse_yaml(f"a: {word}\n", "x").value["a"].value
    assert (type(got), got) == (type(value), value)


def test_anchors_and_aliases_are_values():
    tree = parse_yaml("a: &x {b: [1, 2]}\nc: *x\n", "x")
    assert tree.plain() == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}}
    assert tree.value["c"].where.line == 2
