"""What surrounds the code: metadata, lock files, config headers, and what a built wheel holds."""

import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ruamel.yaml import YAML

import deqflow

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKS = sorted((ROOT / "scripts" / "locks").glob("*.txt"))
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def requirement_names(lines):
    return [canonicalize_name(Requirement(line).name) for line in lines]


def pins(lock: str, python: str) -> dict[str, str]:
    """Package -> version, as `scripts/locks/<lock>.txt` has them for one Python."""
    chosen = {}
    for line in (ROOT / "scripts" / "locks" / f"{lock}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        row = Requirement(line)
        if row.marker is None or row.marker.evaluate({"python_version": python}):
            assert row.name not in chosen, f"{lock}.txt pins {row.name} twice on Python {python}"
            (specifier,) = row.specifier
            chosen[row.name] = specifier.version
    return chosen


def test_core_is_small():
    assert requirement_names(PROJECT["dependencies"]) == ["jax", "flax", "optax", "jaxopt", "jaxtyping"]
    assert set(EXTRAS) == {"train", "flows", "bench", "docs", "dev", "cuda", "tpu", "prepare"}


def test_one_version_everywhere():
    version = deqflow.__version__
    assert str(Version(version)) == version
    assert YAML(typ="safe").load(ROOT / "CITATION.cff")["version"] == version
    released = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == "Unreleased"
    assert len(released) == 1 or released[1] == version


def test_citation_has_what_the_format_requires():
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_locks_hold_names_versions_and_markers_only(lock):
    first, *rows = lock.read_text().splitlines()
    assert first.startswith("# Made by scripts/lock.sh: ")
    pattern = re.compile(r'[a-z0-9-]+==[0-9][0-9a-z.]*( ; python_version (>=|<) "3\.\d+"( and python_version < "3\.\d+")?)?')
    assert rows
    assert [row for row in rows if not pattern.fullmatch(row)] == []


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(("lock", "extras"), [("train", ["train"]), ("test", ["train", "flows", "dev"])])
def test_locks_satisfy_the_project(lock, extras, python):
    pinned = pins(lock, python)
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]:
        wanted = Requirement(line)
        assert pinned[canonicalize_name(wanted.name)] in wanted.specifier, line


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_one_environment_serves_training_and_tests(python):
    assert pins("train", python).items() <= pins("test", python).items()
    shared = pins("build", python).keys() & pins("test", python).keys()
    assert all(pins("build", python)[name] == pins("test", python)[name] for name in shared)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configs_start_with_paper_command_score_and_time(config):
    header = " ".join(line.lstrip("# ") for line in re.match(r"(#.*\n)*", config.read_text()).group().splitlines())
    assert re.search(r"\b(19|20)\d\d\b", header), "the paper, with its year"
    assert f"deqflow train configs/{config.name}" in header
    assert re.search(r"->.*\d", header), "the score, as measured"
    assert re.search(r"\d+ (s|seconds|min|minutes|h|hours) on ", header), "the time and the device it was measured on"


def test_wheel(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"deqflow-{deqflow.__version__}.dist-info"
        assert "deqflow = deqflow.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deqflow").rglob("*.py")}
    assert here | {"deqflow/py.typed", "deqflow/__init__.pyi", f"{info}/licenses/LICENSE"} <= names
    assert {name.split("/")[0] for name in names} == {"deqflow", info}
