"""Programs on disk: found again, elsewhere or nowhere as JAX's own settings say, and repaired."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CODE = """
import time, jax, jax.numpy as jnp
from deqflow.machine.compiled import keep_compiled_programs
keep_compiled_programs()
print(jax.jit(lambda x: jnp.linalg.matrix_power(jnp.tanh(x) @ x, 3).sum())(jnp.eye(3)))
"""


def process(cache, **settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), **settings}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return {path.name: path.read_bytes() for path in Path(cache).rglob("*-cache")}


def test_programs_are_found_again_and_damaged_ones_made_anew(tmp_path):
    kept = process(tmp_path)
    assert kept
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:-20])
    repaired = process(tmp_path)
    assert repaired.keys() == kept.keys()
    assert all(repaired[name] != content[:-20] for name, content in kept.items())
    assert process(tmp_path) == repaired


@pytest.mark.parametrize("settings", [{"JAX_ENABLE_COMPILATION_CACHE": "0"}, {"JAX_COMPILATION_CACHE_DIR": "/dev/null/none"}])
def test_settings_of_jax_go_first(tmp_path, settings):
    environment = {**settings, "PYTHONWARNINGS": "ignore"}
    assert process(tmp_path, **environment) == {}
