"""The configs in `configs/`, and the components that ship with the package, as the config system sees them."""

import json
import pathlib
import subprocess
import sys

import pytest

from deqflow import registry
from deqflow.config import Config, load, parse, schema
from deqflow.config.document import sections
from deqflow.config.signature import arguments_of

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("**/*.yaml"))


def test_there_are_configs():
    assert {"digits_deq", "digits_realnvp", "checkerboard_realnvp"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_round_trips_and_satisfies_the_schema(path, valid):
    config = load(path)
    assert isinstance(config, Config)
    assert parse(config.dump()) == config
    rules = schema()
    assert valid(config.to_dict(), rules, rules)
    assert path.read_text().startswith("#"), "a config starts with what it trains, the command, the score and the time"


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in registry.families() for kind in registry.kinds(family)])
def test_every_argument_of_every_component_is_documented(family, kind):
    for argument in arguments_of(registry.resolve(family, kind)):
        assert argument.shape is None or argument.help, f"{family} {kind}: the docstring's Args say nothing of {argument.name!r}"


def test_the_schema_is_json():
    rules = json.loads(json.dumps(schema(), allow_nan=False))
    assert set(rules["properties"]) == {argument.name for argument in sections()} | {"extends"}


SCRIPT = """
import sys
from jax._src import xla_bridge
from deqflow.config import ConfigError, components, load, schema

for path in sys.argv[1:]:
    load(path)
    try:
        load(path, ["model.solver.histroy=3", "train.steps=many"])
    except ConfigError as error:
        assert len(error.problems) == 2
    else:
        raise AssertionError("accepted")
components()
schema()
assert not xla_bridge._backends, xla_bridge._backends
"""


def test_no_device_is_touched():
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, CONFIGS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
