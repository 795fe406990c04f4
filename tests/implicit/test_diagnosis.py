"""What a diagnosis says in words."""

import jax
import jax.numpy as jnp
import numpy as np

from deqflow.implicit import JacobianFree, Picard, Status
from deqflow.implicit.diagnose import diagnose

KEY = jax.random.key(3)


def test_a_constant_that_certifies_nothing_gives_no_bound(x64):
    f = lambda z: 0.8 * z + 1  # noqa: E731
    d = diagnose(f, jnp.zeros((3, 4)), key=KEY, lipschitz=np.array([0.8, 1.0, 0.7]))
    assert list(d.error_is_bound) == [True, False, False]
    np.testing.assert_allclose(d.error[1:], d.residual[1:] / 0.2, rtol=1e-9)
    assert len(d.problems) == 2
    assert d.problems[0].startswith("sample 1: a Lipschitz constant of 1 or more bounds no error")
    assert d.problems[1].startswith("sample 2: ‖J‖₂ is 0.8, larger than the Lipschitz constant given")
    assert "distance to the solution, bound or estimate" in str(d)


def test_all_samples_failed():
    d = diagnose(lambda z: z * jnp.nan, jnp.ones((2, 3)), key=KEY)
    assert d.failed.all()
    assert str(d).splitlines() == [
        "2 samples of dimension 3, 2 failed",
        "Problems:",
        f"- all 2 samples: {Status.DIVERGED.message} (DIVERGED); {Status.DIVERGED.remedy}.",
    ]


def test_an_exactly_singular_equation(x64):
    d = diagnose(lambda z: z * jnp.array([1.0, 0.5]), jnp.zeros((1, 2)), key=KEY)
    assert d.smallest_singular_value[0] < 1e-15
    assert np.isnan(d.gradient_error[0])
    text = str(d)
    assert "sample 0: I - J is nearly singular" in text
    assert "sample 0: the error of the gradient is unknown" in text


def test_the_problem_of_a_single_equation():
    d = diagnose(lambda z: 0.9 * z + 1, jnp.zeros(3), key=KEY, batched=False, budget=1, solver=Picard())
    assert d.steps == 1
    assert [p for p in d.problems if p.startswith(f"the sample: {Status.STEP_LIMIT.message} (STEP_LIMIT)")]


def test_many_samples_are_counted(x64):
    f = lambda z: 0.9 * z + jnp.arange(10.0)[:, None]  # noqa: E731
    text = str(diagnose(f, jnp.zeros((10, 2)), key=KEY, gradient=JacobianFree(), lipschitz=0.9))
    assert "9 of 10 samples" not in text
    assert "- all 10 samples: the gradient by JacobianFree is off by 90%; use Implicit" in text
    some = str(diagnose(f, jnp.zeros((10, 2)), key=KEY, budget=1, solver=Picard()))
    assert "9 of 10 samples, among them 1, 2, 3, 4, 5, 6: the step budget ran out" in some


def test_an_empty_batch():
    d = diagnose(lambda z: 0.5 * z, jnp.zeros((0, 3)), key=KEY)
    assert d.condition.shape == (0,)
    assert str(d) == "0 samples of dimension 3, 0 failed\nNo problem found."
