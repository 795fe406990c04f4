"""Solves and gradients of a batch that is sharded over devices; run as a program, the file computes them on eight simulated ones."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deqflow.bench.collectives import collectives
from deqflow.implicit import (
    GMRES,
    Anderson,
    BiCGStab,
    Broyden,
    Dense,
    Gradient,
    Implicit,
    JacobianFree,
    LinearFixedPoint,
    Neumann,
    Newton,
    Phantom,
    Picard,
    Reversible,
    ReversibleAdjoint,
    Shine,
    Solver,
    TruncatedNeumann,
    Unrolled,
    fixed_point,
)

DEVICES, BATCH, WIDTH = 8, 16, 4
TIGHT = {"rtol": 1e-13, "max_steps": 100}
EXACT = Implicit(linear=dataclasses.replace(Implicit().linear, rtol=1e-13))

# The derivative of the steps, and the inverse that they leave behind, magnify rounding: not to the last digit there.
CASES: dict[str, tuple[Solver, Gradient]] = {
    "picard": (Picard(**TIGHT), EXACT),
    "anderson": (Anderson(**TIGHT), EXACT),
    "broyden": (Broyden(**TIGHT), EXACT),
    "newton": (Newton(**TIGHT), EXACT),
    "reversible": (Reversible(**TIGHT), EXACT),
    "gmres": (Picard(**TIGHT), Implicit(linear=GMRES(rtol=1e-13))),
    "bicgstab": (Picard(**TIGHT), Implicit(linear=BiCGStab(rtol=1e-13))),
    "neumann": (Picard(**TIGHT), Implicit(linear=Neumann(rtol=1e-13))),
    "linear fixed point": (Picard(**TIGHT), Implicit(linear=LinearFixedPoint(rtol=1e-13))),
    "dense": (Picard(**TIGHT), Implicit(linear=Dense())),
    "jacobian free": (Picard(**TIGHT), JacobianFree()),
    "truncated": (Picard(**TIGHT), TruncatedNeumann()),
    "phantom": (Picard(**TIGHT), Phantom()),
    "unrolled": (Anderson(history=2, rtol=1e-4, max_steps=8), Unrolled()),
    "shine": (Broyden(rtol=1e-4), Shine()),
    "reversible adjoint": (Reversible(damping=0.2, rtol=1e-2, max_steps=50), ReversibleAdjoint()),
}
# These add up the gradient of the parameters along the steps, over the devices in every one of them.
SUMS_IN_THE_LOOP = {"phantom", "unrolled", "reversible adjoint"}


def test_sharded_as_not_sharded(subtests):
    """One subprocess for all cases, as simulated devices have to be asked for before JAX starts."""
    # Unoptimised programs compile in half the time.
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", "XLA_FLAGS": flags}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # and none of them twice
    ended = subprocess.run([sys.executable, "-W", "error", __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    results = [json.loads(line) for line in ended.stdout.splitlines()]
    control, under_vmap, *results = results

    with subtests.test("a gradient under vmap, by the default linear solver"):
        assert under_vmap["difference"] <= 1e-10

    with subtests.test("what is told from the compiled program: a map that mixes samples"):
        assert control["in loops"] == ["all-reduce of f64[4]", "all-reduce of pred[2]"]

    assert {(r["case"], r["mesh"]) for r in results} == {(case, mesh) for case in CASES for mesh in ("Auto", "Explicit")}
    for r in results:
        with subtests.test(f"{r['case']}, {r['mesh']}"):
            assert "error" not in r, r["error"]
            assert r["difference"] <= 1e-10
            assert r["same steps"]
            assert r["sharded"] == {"value": True, "stats": True, "gradient of x": True, "gradient of W": False}
            # Truth values, whether any sample is still running or stuck: neither the state nor its history moves between devices.
            if r["case"] in SUMS_IN_THE_LOOP:
                assert not any("gather" in kind or "permute" in kind or "to-all" in kind for kind in r["in loops"])
            else:
                assert r["in loops"] in (["all-reduce of pred[2]"], ["all-reduce of pred[2]", "all-reduce of pred[]"])


def loss_of(solver, gradient):
    def loss(W, x, c):
        start = {"square": jnp.zeros_like(x[:, :2, None]), "rest": jnp.zeros_like(x[:, 2:])}

        def f(z):
            image = jnp.tanh(jnp.concatenate([z["square"][:, :, 0], z["rest"]], axis=1) @ W + x)
            return {"square": image[:, :2, None], "rest": image[:, 2:]}

        solution = fixed_point(f, start, solver=solver, gradient=gradient)
        return sum(jnp.sum(c * jnp.sin(leaf.reshape(BATCH, 2))) for leaf in solution.value.values()), solution

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def collectives_in_loops(program):
    """Every kind of communication between devices in the loops of a compiled program."""
    return sorted({f"{use.kind} of {', '.join(use.shapes)}" for use in collectives(program) if use.in_loop})


def main():
    random = np.random.default_rng(0)
    W = 0.5 * np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0]
    x, c = random.standard_normal((BATCH, WIDTH)), random.standard_normal((BATCH, 2))
    references = {}

    def placed(mesh):
        sharded = NamedSharding(mesh, PartitionSpec("batch"))
        return jax.device_put(W, NamedSharding(mesh, PartitionSpec())), jax.device_put(x, sharded), jax.device_put(c, sharded)

    def measure(function, solver, gradient, mesh):
        """How the sharded run differs from the one on a single device."""
        # The exact gradients are the same ones.
        reference = solver, Implicit if isinstance(gradient, Implicit) else gradient
        if reference not in references:
            references[reference] = function(W, x, c)
        (value, solution), gradient = references[reference]
        arguments = placed(mesh)
        program = function.lower(*arguments).compile()
        (value2, solution2), gradient2 = program(*arguments)
        pairs = zip(jax.tree.leaves((value, solution.value, gradient)), jax.tree.leaves((value2, solution2.value, gradient2)), strict=True)

        def sharded(tree):
            wanted = NamedSharding(mesh, PartitionSpec("batch"))
            return all(leaf.sharding.is_equivalent_to(wanted, leaf.ndim) for leaf in jax.tree.leaves(tree))

        return {
            "difference": max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs),
            "same steps": np.array_equal(solution.stats.steps, solution2.stats.steps),
            "sharded": {
                "value": sharded(solution2.value),
                "stats": sharded(solution2.stats),
                "gradient of W": sharded(gradient2[0]),
                "gradient of x": sharded(gradient2[1]),
            },
            "in loops": collectives_in_loops(program.as_text()),
        }

    meshes = {kind.name: jax.make_mesh((DEVICES,), ("batch",), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit)}
    mixing = jax.jit(lambda W, x: fixed_point(lambda z: 0.5 * jnp.tanh(z @ W + x + z.mean(0)), jnp.zeros_like(x), solver=Picard()).value)
    with jax.set_mesh(meshes["Auto"]):
        program = mixing.lower(*placed(meshes["Auto"])[:2]).compile()
    print(json.dumps({"in loops": collectives_in_loops(program.as_text())}))

    def several(W, x):
        def total(W):
            f = lambda z: jnp.tanh(z @ W + x)  # noqa: E731
            return fixed_point(f, jnp.zeros_like(x), solver=Picard(**TIGHT), gradient=Implicit(linear=BiCGStab(rtol=1e-13))).value.sum()

        return jax.vmap(jax.grad(total))(jnp.stack([W, W / 2]))

    want = jax.jit(several)(W, x)
    with jax.set_mesh(meshes["Explicit"]):
        got = jax.jit(several)(*placed(meshes["Explicit"])[:2])
    print(json.dumps({"difference": float(np.abs(np.asarray(got) - np.asarray(want)).max())}))
    for case, (solver, gradient) in CASES.items():
        function = loss_of(solver, gradient)
        for kind, mesh in meshes.items():
            try:
                with jax.set_mesh(mesh):
                    result = measure(function, solver, gradient, mesh)
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps({"case": case, "mesh": kind, **result}), flush=True)


if __name__ == "__main__":
    main()
