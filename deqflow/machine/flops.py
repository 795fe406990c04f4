"""How much a step computes, and how much of what the devices could that is."""

import math
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr

PEAK = {
    **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 312e12),
    **dict.fromkeys(("NVIDIA H100 80GB HBM3", "NVIDIA H200"), 989e12),
    "TPU v4": 275e12,
    **dict.fromkeys(("TPU v5 lite", "TPU v5e"), 197e12),
    **dict.fromkeys(("TPU v5", "TPU v5p"), 459e12),
    **dict.fromkeys(("TPU v6 lite", "TPU v6e"), 920e12),
}
"""Floating-point operations per second in dense products of bfloat16, by JAX's name for the device: from NVIDIA's data sheets, of which the
figures for sparse matrices are twice as large, and from what JAX itself holds true of TPUs (`jax.experimental.pallas.tpu.get_tpu_info`)."""


class Work(NamedTuple):
    """What a program computes.

    Attributes:
      flops: of its matrix products and convolutions, two for every multiplication with its addition; nothing else is counted.
      exact: whether that is all of them. The body of a loop that ends when something has converged is counted once, as its number of rounds
        is not known before: of a model that solves an equation this is a lower bound, and a low one.
    """

    flops: float
    exact: bool


def work_of(program: Any) -> Work:
    """The products in a program, those in a loop of known length once for every round, of branches the most expensive one.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def power(a):
      ...     return jax.lax.fori_loop(0, 5, lambda i, b: a @ b, a)
      >>> work_of(jax.make_jaxpr(power)(jnp.ones((10, 10))))
      Work(flops=10000.0, exact=True)
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    works = [_of_equation(equation) for equation in jaxpr.eqns]
    return Work(sum((work.flops for work in works), 0.0), all(work.exact for work in works))


def _of_equation(equation: Any) -> Work:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return Work(2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted), True)
    if name in ("conv_general_dilated", "conv_same"):
        kernel = equation.invars[1].aval
        outputs = kernel.shape[parameters["dimension_numbers"].rhs_spec[0] if name == "conv_general_dilated" else -1]
        return Work(2.0 * equation.outvars[0].aval.size * kernel.size / outputs, True)
    if name == "while":
        body = work_of(parameters["body_jaxpr"])
        return Work(body.flops, body.flops == 0)
    if name == "cond":
        return max(work_of(branch) for branch in parameters["branches"])
    if "jaxprs" in parameters:  # of a linear solve or a root: the other programs in it are for its derivatives
        return work_of(parameters["jaxprs"].solve)
    inner = [work_of(value) for value in parameters.values() if isinstance(value, ClosedJaxpr | Jaxpr)]
    rounds = parameters["length"] if name == "scan" else 1
    return Work(rounds * sum((work.flops for work in inner), 0.0), all(work.exact for work in inner))


def utilisation(work: Work, steps_per_second: float | None, devices: tuple[Any, ...]) -> dict[str, float]:
    """Operations per second of all devices, and their share of the peak where that is known; `at_least` where the work is a lower bound."""
    if steps_per_second is None or work.flops == 0:
        return {}
    rate, suffix = work.flops * steps_per_second, "" if work.exact else "_at_least"
    peak = PEAK.get(devices[0].device_kind)
    known = {} if peak is None else {f"flops_utilisation{suffix}": rate / (peak * len(devices))}
    return {f"flops_per_second{suffix}": rate} | known
