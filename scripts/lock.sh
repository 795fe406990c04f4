#!/usr/bin/env bash
# Makes scripts/locks/*.txt anew from pyproject.toml: the newest versions that fit together on the oldest and the newest tested Python.
#
#   scripts/lock.sh [python3.11 python3.12]
#
# The files hold names, versions and markers only; where the packages come from is the business of whoever installs them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $# -gt 0 ]] || set -- python3.11 python3.12
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for python in "$@"; do
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -m venv "$work/venv-$version"
  pip=("$work/venv-$version/bin/python" -m pip --quiet --disable-pip-version-check)
  "${pip[@]}" install --upgrade pip
  resolve() { # resolve NAME REQUIREMENT...
    local name=$1
    shift
    "${pip[@]}" install --dry-run --ignore-installed --report "$work/$name-$version.json" "$@"
    "$python" - "$work/$name-$version.json" >"$work/$name-$version.pins" <<'END'
import json, sys
for item in json.load(open(sys.argv[1]))["install"]:
    print(item["metadata"]["name"] + "==" + item["metadata"]["version"])
END
    sed -i.bak '/^deqflow==/d' "$work/$name-$version.pins"
  }
  # The tools first, then the larger set; the smaller is held to the same versions.
  resolve build pip setuptools hatchling editables
  resolve test -c "$work/build-$version.pins" '.[train,flows,dev]'
  resolve train -c "$work/build-$version.pins" -c "$work/test-$version.pins" '.[train]'
done

"$python" - "$work" <<'END'
import pathlib, re, sys

work, locks = pathlib.Path(sys.argv[1]), pathlib.Path("scripts/locks")
purpose = {
    "build": "the tools that install and build the rest",
    "train": "what scripts/quickstart.sh installs",
    "test": "what scripts/test.sh installs",
}
for name, what in purpose.items():
    pins = {}  # Python version -> {package: version}
    for file in work.glob(f"{name}-*.pins"):
        rows = (line.split("==") for line in file.read_text().split())
        pins[file.stem.rpartition("-")[2]] = {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in rows}
    order = sorted(pins, key=lambda version: tuple(map(int, version.split("."))))
    lines = [f"# Made by scripts/lock.sh: {what}."]
    for package in sorted(set().union(*pins.values())):
        # A Python between or after the tested ones takes the pins of the nearest tested one below it.
        spans = []  # [version, first Python, Python after the last or None]
        for python in order:
            version = pins[python].get(package)
            if spans and spans[-1][2] is None:
                if spans[-1][0] == version:
                    continue
                spans[-1][2] = python
            if version is not None:
                spans.append([version, python, None])
        for version, first, after in spans:
            bounds = [f'python_version >= "{first}"'] * (first != order[0]) + [f'python_version < "{after}"'] * (after is not None)
            lines.append(f"{package}=={version}" + (" ; " + " and ".join(bounds) if bounds else ""))
    (locks / f"{name}.txt").write_text("\n".join(lines) + "\n")
END
