"""What only a GPU can show: that it computes what a CPU does, and what its allocator says. `scripts/gpu_check.sh` runs these."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.bench import memory
from deqflow.config import load
from deqflow.deq import ConvCell
from deqflow.train import run
from deqflow.train.assemble import assemble
from deqflow.train.state import Layout

pytestmark = pytest.mark.gpu

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
# Solves so exact that what is left is the rounding of the device.
EXACT = ["model.solver.rtol=1e-6", "model.solver.max_steps=200"]
LINEAR = ["model.gradient.linear.rtol=1e-6", "model.gradient.linear.max_steps=200"]
CASES = {
    "digits_deq": [*EXACT, *LINEAR],
    "digits_realnvp": ["model.couplings=4"],
    "checkerboard_residual": ["model.blocks=2"],
    "checkerboard_spline": ["model.couplings=2"],
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_cpu(name):
    with jax.default_device(jax.devices("cpu")[0]):
        assembly = assemble(load(CONFIGS / f"{name}.yaml", [*CASES[name], "data.batch_size=32"]))
        model = assembly.make_model()
        batch = assembly.source.split("train").gather(np.arange(32))
        layout = Layout.of(model)
        leaves = jax.device_get(layout.leaves(model))
    params = {leaf: value for leaf, value in leaves.items() if leaf.startswith("params")}

    def loss(params, leaves, batch, key):
        return assembly.task.loss(layout.model(leaves | params, training=True), batch, key)[0]

    found = []
    for device in (jax.devices("cpu")[0], jax.devices()[0]):
        arguments = jax.device_put((params, leaves, batch, jax.random.key(0)), device)
        with jax.default_matmul_precision("highest"):
            found.append(jax.device_get(jax.jit(jax.grad(loss))(*arguments)))
    expected, got = found
    scale = np.sqrt(sum((value**2).sum() for value in expected.values()))
    assert scale > 1e-3
    for leaf, value in expected.items():
        assert np.linalg.norm(got[leaf] - value) <= 1e-3 * scale, leaf


def test_memory_is_flat_on_the_allocator():
    cell = ConvCell(32, groups=8, rngs=nnx.Rngs(0))
    x = jnp.float32(np.random.default_rng(0).standard_normal((128, 16, 16, 32)))
    rows = memory(cell, jnp.zeros_like(x), x, steps=(10, 200), methods=("implicit", "unrolled"), seconds=1.0)
    peak = {(row["method"], row["steps"]): row["peak_bytes"] for row in rows}
    assert all(row["status"].startswith("ok") for row in rows), rows
    assert peak["implicit", 200] <= 1.05 * peak["implicit", 10]
    assert peak["unrolled", 200] >= 5 * peak["implicit", 200]


def test_digits_train_as_well_as_on_the_cpu(tmp_path):
    result = run(CONFIGS / "digits_deq.yaml", tmp_path / "run", quiet=True)
    assert result.test["accuracy"] >= 0.98
    assert result.test["residual_median"] <= 1e-2
