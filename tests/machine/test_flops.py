"""What a step computes, against counting by hand and against XLA, which counts more than products."""

import types

import jax
import jax.numpy as jnp
import pytest

from deqflow.config import parse
from deqflow.implicit import GMRES, Implicit, Picard, fixed_point
from deqflow.machine.flops import Work, utilisation, work_of
from deqflow.nn import conv_same
from deqflow.train.assemble import assemble

A, B = jnp.ones((4, 6)), jnp.ones((6, 5))
SQUARE = jnp.ones((5, 5))
IMAGES, KERNEL = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 7))
PRODUCT, SQUARED, CONVOLVED = 2 * 4 * 6 * 5, 2 * 5**3, 2 * 2 * 64 * 9 * 3 * 7


def loop(length):
    return lambda a: jax.lax.scan(lambda c, _: (a @ c, None), a, length=length)[0]


CASES = {
    "a product": (lambda a, b: a @ b, (A, B), PRODUCT, True),
    "one for every sample": (jax.vmap(lambda a, b: a @ b), (A[None].repeat(3, 0), B[None].repeat(3, 0)), 3 * PRODUCT, True),
    "and its two derivatives": (jax.value_and_grad(lambda a, b: (a @ b).sum(), (0, 1)), (A, B), 3 * PRODUCT, True),
    "a convolution": (conv_same, (IMAGES, KERNEL), CONVOLVED, True),
    "and its two": (jax.value_and_grad(lambda x, k: conv_same(x, k).sum(), (0, 1)), (IMAGES, KERNEL), None, True),
    "a known number of times": (jax.jit(loop(7)), (SQUARE,), 7 * SQUARED, True),
    "recomputed": (jax.grad(jax.checkpoint(lambda a: jnp.sin(jnp.sin(a @ a)).sum())), (SQUARE,), None, True),
    "one of two": (lambda a: jax.lax.cond(a.sum() > 0, loop(3), loop(2), a), (SQUARE,), 3 * SQUARED, True),
    "until it ends": (lambda a: jax.lax.while_loop(lambda b: b.sum() < 9, lambda b: a @ b, a), (SQUARE,), SQUARED, False),
    "a loop without products": (lambda a: jax.lax.while_loop(lambda b: b.sum() < 9, lambda b: 2 * b, a), (SQUARE,), 0, True),
}


@pytest.mark.parametrize("name", CASES)
def test_products_are_counted(name):
    function, arguments, flops, exact = CASES[name]
    work = work_of(jax.make_jaxpr(function)(*arguments))
    assert work.exact == exact
    if flops is not None:
        assert work.flops == flops


def test_derivatives_of_a_convolution_cost_about_what_it_does():
    function, arguments, _, _ = CASES["and its two"]
    assert 2 * CONVOLVED < work_of(jax.make_jaxpr(function)(*arguments)).flops <= 3 * CONVOLVED


def test_of_an_equation_every_loop_counts_once():
    """One round of the forward and one of the backward solve, and the few products beside them."""

    def loss(W, x):
        linear = GMRES(rtol=1e-3, restart=2)
        return fixed_point(lambda z: jnp.tanh(z @ W + x), x, solver=Picard(), gradient=Implicit(linear=linear)).value.sum()

    n = 64
    work = work_of(jax.make_jaxpr(jax.grad(loss))(jnp.zeros((n, n)), jnp.ones((8, n))))
    assert not work.exact
    assert 3 < work.flops / (2 * 8 * n * n) < 6


def test_a_whole_step_has_what_xla_finds():
    config = {
        "data": {"kind": "moons", "batch_size": 64},
        "model": {"kind": "realnvp", "couplings": 2, "width": 64},
        "task": {"kind": "density"},
    }
    assembly = assemble(parse(config | {"task": {"kind": "density"}, "optim": {"kind": "adamw", "lr": 1e-3}, "train": {"steps": 2}}))
    program = assembly.program(assembly.make_model())
    assert program.work.exact
    assert 0.8 < program.work.flops / program.step.lower(program.abstract, assembly.batch).cost_analysis()["flops"] <= 1


@pytest.mark.parametrize(("kind", "share"), [("NVIDIA H100 80GB HBM3", 0.1), ("TPU v5p", 0.2155), ("cpu", None)])
def test_a_share_of_the_peak_where_that_is_known(kind, share):
    devices = 2 * (types.SimpleNamespace(device_kind=kind),)
    told = utilisation(Work(98.9e12, True), 2.0, devices)
    assert told["flops_per_second"] == 197.8e12
    assert told.get("flops_utilisation") == (share and pytest.approx(share, rel=1e-3))


def test_a_lower_bound_is_called_one():
    told = utilisation(Work(1e12, False), 2.0, (types.SimpleNamespace(device_kind="NVIDIA H200"),))
    assert told.keys() == {"flops_per_second_at_least", "flops_utilisation_at_least"}
    assert utilisation(Work(1e12, True), None, ()) == {}
