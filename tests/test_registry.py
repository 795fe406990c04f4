"""The table of components."""

import dataclasses
import importlib
import math
from typing import Annotated

import pytest

from deqflow import registry
from deqflow.registry import Range, UserError, check_ranges


@pytest.fixture
def table(monkeypatch):
    """A copy of the table that a test may change."""
    copy = {name: dataclasses.replace(family, kinds=dict(family.kinds)) for name, family in registry._FAMILIES.items()}
    monkeypatch.setattr(registry, "_FAMILIES", copy)


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in registry.families() for kind in registry.kinds(family)])
def test_every_component_is_there_documented_and_of_its_family(family, kind):
    cls = registry.resolve(family, kind)
    module, _, name = registry._FAMILIES[family].base.partition(":")
    assert issubclass(cls, getattr(importlib.import_module(module), name))
    assert registry.kind_of(cls) == (family, kind)
    doc = (cls.__dict__.get("__doc__") or "").strip()
    assert doc.splitlines()[0].endswith(".")
    assert not doc.startswith(f"{cls.__name__}("), "a dataclass without a docstring"


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UserError, match=r"unknown solver 'andersn'; did you mean 'anderson'\? \(known: anderson, .*picard.*\)"):
        registry.resolve("solver", "andersn")
    with pytest.raises(UserError, match=r"unknown family 'solvers'; did you mean 'solver'\?"):
        registry.kinds("solvers")


@pytest.mark.usefixtures("table")
def test_register_adds_a_class_once():
    @registry.register("solver", "mine")
    class Mine:
        pass

    assert registry.resolve("solver", "mine") is Mine
    assert registry.kind_of(Mine) == ("solver", "mine")
    assert registry.register("solver", "mine")(Mine) is Mine  # a module that is imported again
    with pytest.raises(ValueError, match=r"solver 'mine' is already registered, as .*Mine"):
        registry.register("solver", "mine")(type("Other", (), {}))
    with pytest.raises(ValueError, match="already registered, as deqflow"):
        registry.register("solver", "picard")(Mine)


def test_family_of_knows_the_base_classes():
    for family in ("data", "task", "solver", "gradient", "linear", "optim", "schedule"):
        module, _, name = registry._FAMILIES[family].base.partition(":")
        assert registry.family_of(getattr(importlib.import_module(module), name)) == family
    assert registry.family_of(int) is None
    assert registry.family_of("Solver") is None


@pytest.mark.parametrize(
    ("bounds", "text", "inside", "outside"),
    [
        ({"gt": 0}, "> 0", 1e-300, 0),
        ({"ge": 0, "lt": 1}, ">= 0 and < 1", 0, 1),
        ({"le": 1}, "<= 1", 1, math.inf),
        ({"lt": 2**32}, "< 4294967296", 2**32 - 1, 2**32),
        ({"gt": 0}, "> 0", math.inf, math.nan),
    ],
)
def test_a_range_holds_numbers_and_says_so(bounds, text, inside, outside):
    assert str(Range(**bounds)) == text
    assert inside in Range(**bounds)
    assert outside not in Range(**bounds)


def test_check_ranges_looks_into_unions_and_passes_what_is_no_number():
    def f(a: Annotated[float, Range(gt=0)], b: Annotated[int, Range(ge=1)] | None = None, c: Annotated[float | None, Range(lt=0)] = None):
        pass

    check_ranges(f, {"a": 1, "b": None, "c": -1.0})
    check_ranges(f, {"a": "text", "b": True})
    for arguments, message in [
        ({"a": 0}, "a must be > 0, got 0"),
        ({"b": 0}, "b must be >= 1, got 0"),
        ({"c": 0.5}, "c must be < 0, got 0.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_ranges(f, arguments)
