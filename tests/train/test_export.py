"""The training step of every config is made of what CUDA and TPU know; neither device is needed to tell."""

import gzip
import pathlib
import string

import jax
import numpy as np
import pytest
from flax import nnx

from deqflow.config import load
from deqflow.train.assemble import assemble

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
# Layers that differ in their numbers alone need not be traced several times.
FEWER = {
    "bsds300_implicit": ["model.blocks=1"],
    "bsds300_realnvp": ["model.couplings=2"],
    "bsds300_residual": ["model.blocks=1"],
    "checkerboard_implicit": ["model.blocks=1"],
    "checkerboard_realnvp": ["model.couplings=2"],
    "checkerboard_residual": ["model.blocks=1"],
    "checkerboard_spline": ["model.couplings=2"],
    "cifar10_glow": ["model.steps=1"],
    "cifar10_residual": ["model.steps=1"],
    "digits_glow": ["model.steps=1"],
    "digits_realnvp": ["model.couplings=4"],
    "eight_gaussians_spline": ["model.couplings=2"],
    "mnist_glow": ["model.steps=1"],
    "mnist_implicit": ["model.steps=1"],
    "mnist_realnvp": ["model.steps=1"],
    "mnist_residual": ["model.steps=1"],
}


def idx(array):
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """The overrides that give a config files of the form of those that it names, for what is read of them before training.

    A config that names other files needs others here.
    """
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(idx(np.arange(20 * 28 * 28).reshape(20, 28, 28) % 256))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(20) % 10))
    (folder / "data").mkdir()
    np.savez(folder / "data" / "bsds300.npz", **dict.fromkeys(("train", "validation", "test"), np.zeros((20, 63), np.float32)))
    (folder / "input.txt").write_text(100 * (string.ascii_letters + "\n !$&',-.3:;?"))
    return {"arrays": [f"data.folder={folder}"], "text": [f"data.path={folder / 'input.txt'}"]}


@pytest.mark.parametrize("name", CONFIGS)
def test_training_step_lowers_for_cuda_and_tpu(name, stand_ins):
    path = ROOT / "configs" / f"{name}.yaml"
    kind = next(kind for kind in ("arrays", "text", "") if f"kind: {kind}" in path.read_text())
    assembly = assemble(load(path, [*stand_ins.get(kind, []), *FEWER.get(name, [])]))
    program = assembly.program(nnx.eval_shape(assembly.make_model))
    exported = jax.export.export(program.step, platforms=["tpu", "cuda"])(program.abstract, assembly.batch)
    assert exported.platforms == ("tpu", "cuda")
    assert len(exported.out_avals) > len(program.abstract)  # the state, and numbers to log
    if jax.tree.leaves(program.layout.diagnostics):
        few = {name: jax.ShapeDtypeStruct((16, *leaf.shape[1:]), leaf.dtype) for name, leaf in assembly.batch.items()}
        assert jax.export.export(program.examine, platforms=["tpu", "cuda"])(program.abstract, few).platforms == ("tpu", "cuda")
