"""What a model reports beside every validation."""

from deqflow.config import parse
from deqflow.train.assemble import assemble
from deqflow.train.loop import start

OPTIM = {"kind": "adamw", "lr": 1e-3}


def prepared(data, model, task):
    assembly = assemble(parse({"data": data, "model": model, "task": {"kind": task}, "optim": OPTIM, "train": {"steps": 2, "ema": 0.9}}))
    module = assembly.make_model()
    program = assembly.program(module)
    train, validation = (assembly.source.split(split) for split in ("train", "validation"))
    return program, start(program, module, train, assembly.source.batch_size), validation


def test_the_health_of_equilibria():
    gradient = {"kind": "implicit", "linear": {"kind": "gmres", "rtol": 1e-2}}
    model = {"kind": "deq_classifier", "width": 8, "groups": 2, "stride": 2, "grid": 2, "gradient": gradient}
    program, state, validation = prepared({"kind": "digits", "batch_size": 16}, model, "classification")
    found = program.inspect(state, validation)
    names = ("spectral_radius", "jacobian_norm", "backward_residual", "backward_steps")
    assert found.keys() == {f"solver_{name}" for name in names}
    assert 0 < found["solver_spectral_radius"] <= found["solver_jacobian_norm"] < 1
    assert found["solver_backward_residual"] <= 0.01
    assert 1 <= found["solver_backward_steps"] <= 20
    assert program.inspect(state, validation) == found

    # They are those of the averaged parameters: without them a cell has no Jacobian.
    nothing = {name: 0 * leaf if name.startswith("average/deq.cell") else leaf for name, leaf in state.items()}
    assert program.inspect(nothing, validation)["solver_jacobian_norm"] < found["solver_jacobian_norm"]


def test_certificates():
    model = {"kind": "implicit_flow", "blocks": 1, "width": 4, "depth": 1, "bound": 0.9}
    program, state, validation = prepared({"kind": "moons", "batch_size": 16}, model, "density")
    found = program.inspect(state, validation)
    assert found == {"lipschitz_bound": max(program.layout.model(state, training=False).lipschitz_bounds())}
    assert 0.5 < found["lipschitz_bound"] <= 0.9


def test_nothing_of_a_model_that_has_nothing_to_tell():
    model = {"kind": "realnvp", "couplings": 2, "width": 4, "depth": 1}
    program, state, validation = prepared({"kind": "moons", "batch_size": 16}, model, "density")
    assert program.inspect(state, validation) == {}
