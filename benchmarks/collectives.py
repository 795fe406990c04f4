"""Communication and memory of a training step against the number of devices, read off the compiled program.

python benchmarks/collectives.py

The devices are simulated on the CPU: what XLA exchanges between them depends on the program alone, how long that takes is not measured. On
CPUs XLA adds up a gradient in full on every device, also where it goes on with a part of it; on GPUs and TPUs it then adds up that part.
"""

import os

# Simulated devices have to be asked for before JAX starts. A device may wait for the others in several threads at once.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ |= {"JAX_PLATFORMS": "cpu", "PJRT_NPROC": "32"}

import math
import time
from typing import Any

import jax
from common import ROOT, write_result
from flax import nnx

from deqflow.bench.collectives import collectives
from deqflow.config import load
from deqflow.machine.leaves import Shapes
from deqflow.machine.placement import Placement
from deqflow.train.assemble import assemble
from deqflow.train.step import Program

CONFIGS = {"digits_deq": [], "checkerboard_realnvp": [], "checkerboard_residual": ["model.blocks=2"]}
DEVICES = (1, 2, 8)


def measure(name: str, overrides: list[str], devices: int, full: bool) -> dict[str, Any]:
    """The exchanges and the memory of one step, in bytes per device."""
    config = load(ROOT / "configs" / f"{name}.yaml", overrides)
    assembly = assemble(config)
    model = nnx.eval_shape(assembly.make_model)
    placement = Placement(tuple(jax.devices()[:devices]), full)
    settings = config.train.build()
    program = Program(model, assembly.task, config.optim.build(), settings, config.seed, assembly.batch, placement)
    compiled = program.step.lower(program.abstract, assembly.batch).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None
    assert memory is not None
    found = collectives(text)
    outside = {kind: sum(use.bytes for use in found if use.kind == kind and not use.in_loop) for kind in {use.kind for use in found}}
    return {
        "parameters": nbytes(program.abstract, "params"),
        "spread_parameters": nbytes(program.abstract, "params", spread_alone=True),
        "all_gather": outside.pop("all-gather", 0),
        "all_reduce": outside.pop("all-reduce", 0),
        "other": outside,
        "in_loops": [{"kind": use.kind, "shapes": list(use.shapes), "bytes": use.bytes} for use in found if use.in_loop],
        "state": sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in program.abstract.values()
            if leaf.sharding is not None
        ),
        "temporaries": memory.temp_size_in_bytes,
    }


def nbytes(shapes: Shapes, role: str, spread_alone: bool = False) -> int:
    return sum(
        leaf.size * leaf.dtype.itemsize
        for name, leaf in shapes.items()
        if name.startswith(role) and not (spread_alone and (leaf.sharding is None or leaf.sharding.is_fully_replicated))
    )


def main() -> None:
    began = time.perf_counter()
    metrics: dict[str, Any] = {}
    for name, overrides in CONFIGS.items():
        for devices in DEVICES:
            for full in (False, True) if devices > 1 else (False,):
                metrics[f"{name}, {devices}, {'full' if full else 'replicated'}"] = measure(name, overrides, devices, full)
    expected = {
        "all_gather": "spread_parameters where they are spread, else 0",
        "all_reduce": "parameters, once for every use of a weight, and a few numbers",
        "in_loops": "two truth values in the loop of a solver and one in each of its linear solver; "
        "in the loop over the blocks of a residual flow the gradient of a block",
    }
    write_result("collectives", metrics, expected, time.perf_counter() - began)
    print(
        "\n| config | devices | state | all-gather | all-reduce | in loops | state held | temporaries |\n|---|---|---|---|---|---|---|---|"
    )
    for key, row in metrics.items():
        name, devices, kept = key.split(", ")
        sizes = [f"{row[column] / 1000:.1f}" for column in ("all_gather", "all_reduce", "state", "temporaries")]
        truths = sum(use["bytes"] for use in row["in_loops"] if use["shapes"][0].startswith("pred"))
        others = [f"{use['bytes'] / 1000:.1f}" for use in row["in_loops"] if not use["shapes"][0].startswith("pred")]
        loops = ", ".join([f"{truths} truth values"] * (truths > 0) + others) or "-"
        print(f"| {name} | {devices} | {kept} | {sizes[0]} | {sizes[1]} | {loops} | {sizes[2]} | {sizes[3]} |")


if __name__ == "__main__":
    main()
