"""Steps in bfloat16, of what is kept in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.config import parse
from deqflow.data.pipeline import train_batches
from deqflow.registry import UserError
from deqflow.train.assemble import assemble
from deqflow.train.loop import start

DIGITS = {"kind": "digits", "batch_size": 32}
SOLVER = {"kind": "picard", "rtol": 1e-2, "max_steps": 12}
GRADIENT = {"kind": "implicit", "linear": {"kind": "gmres", "rtol": 1e-2, "restart": 4}}
CLASSIFIER = {"kind": "deq_classifier", "width": 8, "groups": 2, "stride": 2, "grid": 2, "solver": SOLVER, "gradient": GRADIENT}
OTHERS = {
    "monotone": (DIGITS, CLASSIFIER | {"cell": {"kind": "monotone_conv"}}, "classification"),
    "multiscale": (
        DIGITS,
        {"kind": "mdeq_classifier", "widths": [4, 8], "groups": 2, "weight_norm": True, "solver": SOLVER},
        "classification",
    ),
    "segmenter": ({"kind": "mazes", "batch_size": 4}, {"kind": "deq_segmenter", "width": 8, "solver": SOLVER}, "segmentation"),
}


def program_of(data, model, task, **train):
    config = {"data": data, "model": model, "task": {"kind": task}, "optim": {"kind": "adamw", "lr": 3e-3}}
    assembly = assemble(parse(config | {"train": {"steps": 12, "log_every": 12, "ema": 0.9, **train}}))
    return assembly, assembly.program(assembly.make_model())


def test_training_is_nearly_that_of_float32():
    last = {}
    for compute in ("float32", "bfloat16"):
        assembly, program = program_of(DIGITS, CLASSIFIER, "classification", compute=compute)
        records = assembly.source.split("train")
        state = start(program, assembly.make_model(), records, 32)
        batches = train_batches(records, batch_size=32, seed=0)
        for _ in range(12):
            state, last[compute] = program.step(state, next(batches))
        batches.close()
        # Masters, averages, moments and sums.
        assert {leaf.dtype for leaf in state.values()} <= {np.dtype("float32"), np.dtype("int32")}
    assert last["bfloat16"]["solver_failures"] == 0
    assert last["bfloat16"]["solver_residual"] < 0.01
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(last["bfloat16"][name], last["float32"][name], rtol=0.01)
    assert last["bfloat16"]["loss"] != last["float32"]["loss"]


def products(lowered):
    """Of a program the types of what its matrix products and convolutions multiply, with how many of them there are."""
    lines = [line for line in lowered.as_text().splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]
    return [sum(kind in line for line in lines) for kind in ("xbf16>", "xf32>")]


def test_the_step_alone_multiplies_in_bfloat16():
    assembly, program = program_of(DIGITS, CLASSIFIER, "classification", compute="bfloat16")
    narrow, _ = products(program.step.lower(program.abstract, assembly.batch))
    assert narrow >= 10
    batch = assembly.batch | {"mask": jax.ShapeDtypeStruct((32,), jnp.float32)}
    assert products(program.evaluate.lower(program.abstract, batch, 0))[0] == 0


@pytest.mark.parametrize("name", OTHERS)
def test_equilibria_of_every_kind_have_a_state_in_bfloat16(name):
    assembly, program = program_of(*OTHERS[name], compute="bfloat16")
    assert "bf16[" in str(jax.make_jaxpr(program.step)(program.abstract, assembly.batch)).partition("while")[2]


def test_densities_are_refused():
    with pytest.raises(UserError, match=r"train.compute: bfloat16 is not for densities.*leave it out"):
        program_of({"kind": "moons", "batch_size": 8}, {"kind": "realnvp", "width": 4}, "density", compute="bfloat16")
