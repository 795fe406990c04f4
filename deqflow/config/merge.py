"""One tree from several: a base config, the config that extends it, and overrides from the command line."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from deqflow.config.errors import ConfigError, Problem, Where
from deqflow.config.source import MAX_DEPTH, Node, fail, parse_yaml, read


def read_chain(path: Path) -> tuple[Node, tuple[str, ...]]:
    """The tree of a file laid over those of the files that it `extends`, and the names of all of them, the file itself first.

    Raises:
      ConfigError: if a file cannot be read, or a chain of `extends` leads back to itself.
    """
    return extend(read(path), path.parent, [path])


def extend(root: Node, directory: Path, chain: list[Path]) -> tuple[Node, tuple[str, ...]]:
    """`root` laid over what its `extends` names, relative to `directory`; `chain` holds the files on the way here."""
    names = tuple(str(path) for path in chain[-1:])
    if not isinstance(root.value, dict):
        what = "is empty" if root.value is None else f"holds {root.shown()}"
        fail(Where(root.where.source), f"{what}, expected a mapping with the sections data, model, task, optim and train")
    if "extends" not in root.value:
        return root, names
    entry = root.value["extends"]
    if not isinstance(entry.value, str) or not entry.value:
        fail(entry.where, f"expected the name of a YAML file, got {entry.shown()}", "extends")
    if len(chain) > MAX_DEPTH:
        fail(entry.where, f"the last of more than {MAX_DEPTH} configs that extend one another", "extends")
    path = directory / entry.value
    try:
        tree = read(path)
    except ConfigError as error:
        problem = error.problems[0]
        if problem.where.line is not None:  # the file was found, and is at fault itself
            raise
        fail(entry.where, f"{problem.where}: {problem.message}", "extends")
    if any(os.path.samefile(path, other) for other in chain):
        fail(entry.where, f"a circle: {' extends '.join(str(other) for other in [*chain, path])}", "extends")
    base, others = extend(tree, path.parent, [*chain, path])
    own = dataclasses.replace(root, value={key: node for key, node in root.value.items() if key != "extends"})
    return overlay(base, own), names + others


def overlay(base: Node, top: Node, path: str = "", problems: list[Problem] | None = None) -> Node:
    """`top` laid over `base`: mappings are merged, all else is replaced.

    A mapping whose `kind` differs from that of `base` replaces it wholesale, since the settings of one kind mean nothing to
    another; `solver: picard` counts as `solver: {kind: picard}`. Lists are replaced, except by a mapping whose keys are
    positions in the list (overrides such as `model.cells.0.width=8`) and for `plugins`, which add up.
    """
    if path == "plugins" and isinstance(base.value, list) and isinstance(top.value, list):
        known = [node.value for node in base.value]
        return Node([*base.value, *(node for node in top.value if node.value not in known)], top.where)
    if isinstance(base.value, list) and isinstance(top.value, dict) and top.value and all(key.isdecimal() for key in top.value):
        entries = list(base.value)
        for key, node in top.value.items():
            if int(key) < len(entries):
                entries[int(key)] = overlay(entries[int(key)], node, f"{path}.{key}", problems)
            elif problems is not None:
                problems.append(Problem(node.where, f"{path}.{key}", f"no such entry, the list has {len(entries)} (counted from 0)"))
        return dataclasses.replace(base, value=entries)
    if isinstance(top.value, str) and isinstance(base.value, dict) and "kind" in base.value:
        top = Node({"kind": top}, top.where)
    if isinstance(base.value, str) and isinstance(top.value, dict) and path:
        base = Node({"kind": base}, base.where)
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    kinds = base.value.get("kind"), top.value.get("kind")
    if kinds[0] is not None and kinds[1] is not None and kinds[0].value != kinds[1].value:
        return top
    merged = dict(base.value)
    for key, node in top.value.items():
        merged[key] = overlay(merged[key], node, f"{path}.{key}" if path else key, problems) if key in merged else node
    return dataclasses.replace(base, value=merged)


def override(base: Node, overrides: Sequence[str]) -> tuple[Node, list[Problem]]:
    """`base` with overrides such as `model.solver.rtol=1e-4` laid over it, and what is wrong with the overrides themselves.

    The overrides are first merged with one another, in order, so that `model.solver.kind=picard` drops the settings of the
    config's solver and keeps those that other overrides give.
    """
    problems: list[Problem] = []
    tree: Node | None = None
    for text in overrides:
        try:
            node = _tree(text)
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        tree = node if tree is None else overlay(tree, node, "", problems)
    return (base if tree is None else overlay(base, tree, "", problems)), problems


def _tree(text: str) -> Node:
    """An override as a tree with one branch."""
    where = Where(f"override {text if len(text) <= 80 else text[:77] + '...'!r}")
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        fail(where, "expected key=value with dots between keys, such as model.solver.rtol=1e-4")
    if len(keys) > MAX_DEPTH:
        fail(where, f"nested deeper than {MAX_DEPTH} levels")
    if keys[0] == "extends":
        fail(where, "only a file can extend another", "extends")
    node = parse_yaml(value, "", where=where)
    for key in reversed(keys):
        node = Node({key: node}, where)
    return node
