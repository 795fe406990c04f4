"""However a config is mangled, it is either accepted or refused with a message; nothing else ever comes out."""

import random

import pytest

from deqflow.config import Config, ConfigError, load, parse

pytestmark = pytest.mark.usefixtures("fakes")

BITS = [*"{}[]:,-#'\"!|>?%@~&*0\n\t\0\\é🙂\x07\ufeff\ud800", ": ", "- ", "  ", "&a ", "*a", "!!int ", "<<: ", "---\n", "..."]
BITS += ["null", "true", "1e3", ".nan", ".inf", "-1", "9" * 30, "0x" + "f" * 90, '"\\x', '"\\uD800"', "%YAML 1.1\n---\n", "%TAG ! x\n---\n"]
BITS += ["&a [*a]", "[" * 60, "{a: " * 60, "kind", "kind: ", "extends: ", "plugins: ", "anderson"]
PATHS = ["seed", "data.noise", "data.name", "model.width", "model.solver", "model.solver.kind", "model.cells", "model.cells.0", "optim.lr"]
KEYS = ["", "0", "-1", *(key for path in PATHS for key in path.split(".")), "rtol", "train", "steps", "crop", "plugins", "extends"]
VALUES = [None, True, 0, -1, 3, 2**70, 1.5, float("nan"), float("inf"), "", "x", "anderson", "picard", "cosine", [], {}]
VALUES += [[1, "a"], {"kind": "picard"}, {"kind": 3}]


def mangled_text(rng: random.Random, text: str) -> str:
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, length = rng.randrange(len(text) + 1), rng.choice([0, 0, 1, 2, 10])
        middle = rng.choice([*BITS, text[at : at + 20], rng.choice(KEYS)])
        text = text[:at] + middle + text[at + length :]
    return text


def mangled_tree(rng: random.Random, tree: object) -> object:
    if rng.random() < 0.03:
        return rng.choice(VALUES)
    if isinstance(tree, dict):
        entries = [(rng.choice(KEYS) if rng.random() < 0.02 else key, mangled_tree(rng, value)) for key, value in tree.items()]
        return dict(rng.sample(entries, len(entries) if rng.random() < 0.9 else rng.randint(0, len(entries))))
    if isinstance(tree, list):
        return [mangled_tree(rng, value) for value in tree for _ in range(rng.randint(0, 2))]
    return tree


def mangled_override(rng: random.Random) -> str:
    path = rng.choice([*PATHS, ".".join(rng.choice(KEYS) for _ in range(rng.randint(1, 4)))])
    if rng.random() < 0.5:
        return f"{path}={rng.choice(VALUES)}"
    return mangled_text(rng, f"{path}={rng.choice([*BITS, *map(str, VALUES)])}") if rng.random() < 0.8 else rng.choice(BITS)


def check_message(message: str, problems: int) -> None:
    lines = message.splitlines()
    assert all(line.strip() and line.isprintable() and len(line) < 2500 for line in lines)
    assert len(lines) == (1 if problems == 1 else 1 + min(problems, 21))


def outcome(make) -> str:
    try:
        config = make()
    except ConfigError as error:
        check_message(str(error), len(error.problems))
        return "refused"
    assert isinstance(config, Config)
    assert parse(config.dump()) == config
    return "accepted"


@pytest.mark.parametrize("seed", range(4))
def test_mangled_configs_are_accepted_or_refused(text, seed):
    rng = random.Random(seed)
    tree = parse(text).to_dict()
    outcomes = []
    for _ in range(40):
        outcomes.append(outcome(lambda: parse(mangled_text(rng, text))))
        outcomes.append(outcome(lambda: parse({key: mangled_tree(rng, value) for key, value in tree.items()})))
        outcomes.append(outcome(lambda: parse(text, [mangled_override(rng) for _ in range(rng.randint(1, 3))])))
    assert {"accepted", "refused"} == set(outcomes)  # the mangling is neither too weak nor too strong


def test_any_bytes_in_a_file_are_accepted_or_refused(text, tmp_path):
    rng = random.Random(0)
    path = tmp_path / "config.yaml"
    for _ in range(60):
        data = bytearray(text, "utf-8")
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]))
        outcome(lambda: load(path))
        path.write_bytes(rng.randbytes(rng.randrange(200)))
        assert outcome(lambda: load(path)) == "refused"
