import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from deqflow.bench import Record, memory
from deqflow.bench.isolated import Measured, Program
from deqflow.registry import UserError

MIB = 2**20


class Tanh(nnx.Module):
    def __init__(self, width, *, rngs):
        self.recurrent = nnx.Linear(width, width, kernel_init=nnx.initializers.orthogonal(0.9), rngs=rngs)

    def __call__(self, z, x):
        return jnp.tanh(self.recurrent(z) + x)


@pytest.fixture(scope="module")
def rows():
    cell = Tanh(256, rngs=nnx.Rngs(0))
    return memory(cell, jnp.zeros((64, 256)), jnp.ones((64, 256)), steps=[10, 300], methods=["implicit"], seconds=0.0)


def test_records(rows):
    assert [(row["method"], row["steps"]) for row in rows] == [("implicit", 10), ("implicit", 300)]
    for row in rows:
        assert set(row) == Record.__annotations__.keys()
        assert row["seconds"] > 0
        assert 0.5 * row["compiled_bytes"] <= row["peak_bytes"] <= row["compiled_bytes"] + 24 * MIB
    few, many = rows
    assert few["status"] == "ok"
    assert many["status"].startswith("ok, stopped at step ")
    assert many["gradient_error"] <= 1e-5 < few["gradient_error"]


def test_implicit_memory_is_flat(rows):
    few, many = rows
    assert many["compiled_bytes"] <= 1.02 * few["compiled_bytes"]


def test_what_does_not_fit_is_not_run_and_unrolling_takes_memory_for_every_step(affine):
    found = memory(affine, affine.z, affine.x, steps=[10, 300], methods=["unrolled"], limit=10.0)
    assert [row["steps"] for row in found] == [10, 300]
    for row in found:
        assert (row["peak_bytes"], row["seconds"], row["gradient_error"]) == (None, None, None)
        assert row["status"] == "does not fit: it needs 0 MiB, and 0 MiB are allowed"
    assert found[1]["compiled_bytes"] >= 10 * found[0]["compiled_bytes"]


def test_a_solver_that_diverges_on_an_equation_without_a_solution(monkeypatch):
    monkeypatch.setattr(Program, "run", lambda self, _: Measured(jax.device_get(self._compiled(self._arrays)), 1, 0.1))  # here, for speed
    (row,) = memory(lambda z, x: z**2 + x, jnp.zeros((2, 1)), jnp.ones((2, 1)), steps=[50], methods=["jacobian_free"])
    assert row["status"].startswith("diverged, 100 % of the samples, gradient error unknown: no equilibrium was found, relative residual")
    assert (row["peak_bytes"], row["seconds"], row["gradient_error"]) == (1, 0.1, None)


def test_wrong_arguments(affine):
    with pytest.raises(UserError, match="did you mean 'phantom'"):
        memory(affine, affine.z, affine.x, methods=["implicit", "fantom"])
    with pytest.raises(UserError, match="at least 1, got 0"):
        memory(affine, affine.z, affine.x, steps=[10, 0])
    with pytest.raises(ValueError, match="must have the shape and dtype of its argument"):
        memory(lambda z, x: z[:, :1], affine.z, affine.x)
