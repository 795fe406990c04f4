import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.bench import child
from deqflow.bench.isolated import ChildError, Program, free_bytes

MIB = 2**20


def test_a_program_that_needs_memory_and_takes_all_kinds_of_arrays():
    def function(key, x, counts):
        wide = x.astype(jnp.float32)[:, None] + jnp.arange(4096.0)  # 64 MiB, which a product needs in memory
        noise = jax.random.normal(key, (3,))
        return (wide @ wide[:, :8])[:2], noise, jnp.linalg.qr(jnp.diag(noise))[1], counts + 1, x[:2]

    arguments = (jax.random.key(7), jnp.arange(4096, dtype=jnp.bfloat16), jnp.arange(3))
    program = Program(function, arguments)
    measured = program.run(0.0)
    for got, want in zip(measured.outputs, function(*arguments), strict=True):
        np.testing.assert_allclose(got.astype(np.float32), np.asarray(want, np.float32), rtol=1e-5, atol=1e-6)
    assert measured.outputs[-1].dtype == jnp.bfloat16
    assert program.bytes >= 64 * MIB
    assert 0.9 * program.bytes <= measured.peak_bytes <= program.bytes + 32 * MIB
    assert 0 < measured.seconds < 60
    assert jax.config.jax_enable_compilation_cache


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL, as a process is that needs more memory"),
        ("import sys; print('noise', file=sys.stderr); sys.exit('OutOfMemory: 7 bytes')", "OutOfMemory: 7 bytes"),
        ("raise SystemExit(3)", "ended with code 3"),
    ],
)
def test_a_process_that_fails(code, message, tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(child, "__file__", str(tmp_path / "child.py"))
    with pytest.raises(ChildError, match=re.escape(message)):
        Program(jnp.sin, (jnp.ones(2),)).run(0.0)


def test_a_real_failure_is_told_in_one_line():
    program = Program(lambda x: jnp.zeros((1 << 45,)) + x, (jnp.ones(()),))  # 128 TiB
    with pytest.raises(ChildError, match=r"^\w+: .*"):
        program.run(0.0)


def test_free_memory():
    room = free_bytes()
    assert room is None or MIB < room < 2**50
