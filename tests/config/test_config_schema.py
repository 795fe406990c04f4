"""The JSON schema for editors agrees with what the loader accepts."""

import json

import pytest

from deqflow import registry
from deqflow.config import components, parse, schema

pytestmark = pytest.mark.usefixtures("fakes")


def test_the_schema_is_json_and_says_what_the_docstrings_say():
    rules = json.loads(json.dumps(schema(), allow_nan=False))
    anderson = rules["$defs"]["solver.anderson"]
    assert anderson["description"] == "Anderson acceleration."
    assert anderson["properties"]["history"] == {"type": "integer", "minimum": 1, "default": 5, "description": "differences kept, at most."}
    assert anderson["properties"]["kind"] == {"const": "anderson"}
    assert rules["$defs"]["optim.adam"]["required"] == ["kind", "lr"]
    assert rules["$defs"]["optim.adam"]["properties"]["lr"]["anyOf"] == [
        {"type": "number", "exclusiveMinimum": 0},
        {"$ref": "#/$defs/schedule"},
    ]
    assert "classes" not in rules["$defs"]["model.classifier"]["properties"]
    assert rules["$defs"]["model.classifier"]["properties"]["solver"]["default"] == {
        "kind": "anderson",
        "history": 7,
        "rtol": 1e-5,
        "exact": False,
    }


def test_a_config_that_loads_satisfies_the_schema(text, valid):
    rules = schema()
    tree = parse(text).to_dict()
    assert valid(tree, rules, rules)
    pictures = parse({**tree, "data": "pictures", "task": "density", "model": {**tree["model"], "solver": "picard"}})
    assert valid(pictures.to_dict(), rules, rules)
    assert valid({**tree, "task": "density"}, rules, rules)
    assert valid({"extends": "base.yaml", "seed": 1}, rules, rules)


@pytest.mark.parametrize(
    ("section", "entry"),
    [
        ("seed", -1),
        ("seed", True),
        ("data", {"kind": "moon"}),
        ("data", {"noise": 1}),
        ("data", {"kind": "moons", "noise": "1"}),
        ("model", {"kind": "classifier"}),
        ("model", "classifier"),
        ("model", {"kind": "classifier", "width": 2, "norm": "batch"}),
        ("model", {"kind": "classifier", "width": 2, "cells": "picard"}),
        ("task", {"kind": "density", "a": 1}),
        ("optim", {"kind": "adam", "lr": 0}),
        ("train", {}),
        ("trian", {}),
    ],
)
def test_a_config_that_does_not_load_does_not_satisfy_it(text, valid, section, entry):
    rules = schema()
    tree = {**parse(text).to_dict(), section: entry}
    with pytest.raises(ValueError, match="config"):
        parse(tree)
    assert not valid(tree, rules, rules)


def test_components_lists_every_kind_with_its_first_line(monkeypatch):
    monkeypatch.setitem(registry._FAMILIES["data"].kinds, "remote", "no_such_package_abc.data:Remote")
    listed = components()
    assert listed["solver"] == [("anderson", "Anderson acceleration."), ("picard", "Plain iteration.")]
    assert listed["data"][-1][1].startswith("(data 'remote' needs the package 'no_such_package_abc'")
    assert "remote" not in str(schema()["$defs"]["data"])
