"""The package's inner order, and how light `import deqflow` is."""

import ast
import pathlib
import subprocess
import sys

import pytest

import deqflow

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "deqflow"

ORDER = (
    *("registry", "implicit", "nn", "deq", "flows", "models", "tasks", "optim", "data", "config"),
    *("machine", "runs", "train", "bench", "cli", "__main__"),
)
# A package may import every one above it, except where less is said here.
NARROWER = {
    "deq": {"registry", "implicit", "nn"},
    "flows": {"registry", "implicit", "nn"},
    "optim": {"registry"},
    "data": {"registry"},
    "machine": {"registry"},
}
HEAVY = {
    *("array_record", "diffrax", "grain", "matplotlib", "numpyro", "orbax", "pydantic", "rich", "ruamel", "sklearn"),
    *("tensorboardX", "tensorflow", "tensorflow_datasets", "torch"),
}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported(source: str, module: str) -> set[str]:
    """The parts of deqflow (`implicit`, `data`, ...) that the source of `module` imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    parts = {name.split(".")[1] for name in names if name.startswith("deqflow.")}
    return {deqflow._NAMES[part].split(".")[1] if part in deqflow._NAMES else part for part in parts}


def allowed(part: str) -> set[str]:
    return NARROWER.get(part, set(ORDER[: ORDER.index(part)])) | {part}


def complaint(file: str, source: str) -> str:
    part = file.split("/")[0].removesuffix(".py")
    assert part in ORDER, f"{file} belongs to no package of the order {ORDER}"
    wrong = imported(source, "deqflow." + file.removesuffix(".py").replace("/", ".")) - allowed(part) - {"__version__"}
    return f"deqflow/{file} imports {', '.join(sorted(wrong))}, which is not above {part}" if wrong else ""


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_a_package_imports_only_those_above_it(file):
    assert not complaint(file, (PACKAGE / file).read_text())


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("implicit/a.py", "from deqflow.registry import Range", ""),
        ("implicit/a.py", "import deqflow.nn", "nn"),
        ("implicit/a.py", "def f():\n    from deqflow.train import run", "train"),
        ("flows/a.py", "from deqflow import DEQ", "deq"),
        ("flows/a.py", "from deqflow import deq", "deq"),
        ("flows/a.py", "from ..deq import DEQ", "deq"),
        ("data/a.py", "from deqflow.implicit import Picard", "implicit"),
        ("models/a.py", "from deqflow import deq, flows", ""),
    ],
)
def test_the_check_itself(file, source, wrong):
    assert bool(complaint(file, source)) == bool(wrong)
    assert wrong in complaint(file, source)


@pytest.mark.parametrize("file", FILES)
def test_hints_can_be_resolved_at_run_time(file):
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.module == "__future__"), "no `from __future__ import annotations`"
        assert not (isinstance(node, (ast.Name, ast.Attribute)) and "TYPE_CHECKING" in ast.dump(node)), "no TYPE_CHECKING"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout


def test_import_loads_nothing_heavy():
    loaded = run_python("import deqflow, sys; print(*{name.split('.')[0] for name in sys.modules})").split()
    assert "deqflow" in loaded
    assert not set(loaded) & (HEAVY | {"jax", "flax"})


def test_layers_load_nothing_heavy():
    """Flax itself loads some of them; ours must not add to that."""
    code = """if True:
        import sys, jax, flax.nnx, optax
        before = set(sys.modules)
        import deqflow
        deqflow.fixed_point, deqflow.DEQ, deqflow.Flow, deqflow.nn, deqflow.models, deqflow.registry
        print(*{name.split('.')[0] for name in set(sys.modules) - before})
    """
    loaded = run_python(code).split()
    assert "deqflow" in loaded
    assert not set(loaded) & HEAVY


def test_training_waits_for_nothing_that_only_draws():
    code = "import sys, deqflow.train.running, deqflow.train.saved; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = run_python(code).split()
    assert "orbax" in loaded
    assert not set(loaded) & {"matplotlib", "PIL", "sklearn"}


def test_import_adds_little_time():
    """At most 0.3 s over JAX and Flax, all layers included; in processor time, so that a busy machine does not count."""
    code = """if True:
        import time, jax, flax.nnx
        start = time.process_time()
        import deqflow
        deqflow.fixed_point, deqflow.DEQ, deqflow.Flow
        print(time.process_time() - start)
    """
    assert min(float(run_python(code)) for _ in range(3)) <= 0.3


def test_lazy_names():
    for name in deqflow.__all__:
        assert getattr(deqflow, name) is not None
    assert set(dir(deqflow)) == set(deqflow.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fixed_pont'"):
        deqflow.fixed_pont  # noqa: B018


def test_stub_names_what_is_there():
    """`__init__.pyi` tells type checkers of the lazy names: the same names, from the same places."""
    said = {}
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            said |= {alias.name: node.module for alias in node.names}
    assert said == deqflow._NAMES | dict.fromkeys(deqflow._PACKAGES, "deqflow")
