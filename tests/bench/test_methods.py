import jax
import numpy as np
import pytest

from deqflow.bench import METHODS, of_cell
from deqflow.bench.methods import check_method, pair
from deqflow.implicit import Anderson, Picard, Reversible
from deqflow.registry import UserError

# The relative error at a norm of the Jacobian of 0.5, in float32. What is not listed is exact but for rounding; undoing steps
# amplifies that.
INEXACT = {"jacobian_free": (0.05, 0.6), "phantom": (1e-3, 0.2), "reversible": (0, 5e-3)}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_against_the_closed_form(method, affine):
    problem = of_cell(affine, affine.z, affine.x)
    gradient, steps, failures, residual = jax.jit(problem.function(*pair(method, 60, Picard())))(*problem.arguments)
    want = affine.gradient(problem.arguments[-1][0])
    error = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(gradient, want, strict=True)) / sum(np.sum(b**2) for b in want))
    low, high = INEXACT.get(method, (0, 1e-5))
    assert low <= error <= high
    assert (10 < steps <= 60) and failures == 0 and residual < 1e-5


def test_the_solver_keeps_its_settings_but_for_the_stopping_rule():
    solver, _ = pair("implicit", 7, Anderson(history=2, rtol=1e-2))
    assert solver == Anderson(history=2, rtol=0.0, atol=0.0, max_steps=7)
    assert isinstance(pair("reversible", 7, Anderson())[0], Reversible)


def test_unknown_methods():
    with pytest.raises(UserError, match=r"unknown method 'implict'; did you mean 'implicit'\? \(known: unrolled, "):
        check_method("implict")
