"""Residual blocks and implicit flows, and the faults that earlier libraries had."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.flows import Affine, ArnoldiQuadrature, Chain, Flow, ImplicitFlow, Inverse, PowerSeries, Residual, StandardNormal
from deqflow.implicit import Picard, Status
from deqflow.nn import LipschitzMLP

KNOWN = {"expansion": "ignore"}  # the maps here contract, though nothing certifies it


def rotation(c, n=4, dtype=jnp.float64):
    """A map of Lipschitz constant c that plain iteration contracts by no more than c."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    return lambda x: c * jnp.sin(x @ jnp.asarray(q, dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("c", [0.5, 0.9, 0.98])
def test_round_trip_error_is_that_of_rounding(x64, c, dtype):
    """Within 10 eps / (1 - c) in the maximum norm. A test of the squared error against the tolerance left 0.16 at c = 0.98."""
    block = Residual(rotation(c, dtype=dtype), (4,), **KNOWN)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((64, 4)), dtype)
    back = jax.jit(lambda z: block.inverse_and_log_det(z))(block.forward_and_log_det(x).value)
    assert back.diagnostics["solve"].converged.all()
    assert np.abs(back.value - x).max() <= 10 * np.finfo(dtype).eps / (1 - c)


def test_every_sample_is_solved(x64):
    """Hard samples among easy ones are not stopped by a norm over the batch, and easy ones not changed by them."""
    x = jnp.concatenate([1e-3 * jnp.ones((63, 4)), jnp.linspace(-3, 3, 4)[None]])
    block = Residual(rotation(0.98), (4,), **KNOWN)
    back = block.inverse_and_log_det(block.forward_and_log_det(x).value)
    np.testing.assert_allclose(back.value[-1], x[-1], rtol=1e-12)
    assert (np.asarray(back.diagnostics["solve"].steps)[:-1] < back.diagnostics["solve"].steps[-1]).all()


def test_a_step_limit_is_reported_and_a_flow_warns(x64):
    block = Residual(rotation(0.98), (4,), solver=Picard(rtol=1e-12, max_steps=5), **KNOWN)
    stats = block.inverse_and_log_det(jnp.ones((2, 4))).diagnostics["solve"]
    assert (stats.status == Status.STEP_LIMIT).all()
    with pytest.warns(UserWarning, match=r"2 of 2 samples: .*STEP_LIMIT.*max_steps"):
        Flow(StandardNormal((4,)), Chain([Affine((4,), scale=2.0), block])).sample(jax.random.key(0), 2)


def test_what_is_not_invertible_becomes_nan_and_harms_nobody(x64):
    """`x = z - 3x` does not contract; a diverged sample is no number, and the gradients of the others stay finite."""
    block = Residual(lambda x: jnp.where(x > 10, 3 * x, 0.5 * x), (1,), solver=Picard(max_steps=200), **KNOWN)
    z = jnp.array([[1.0], [1e3], [2.0]])
    value, log_det, diagnostics = block.inverse_and_log_det(z)
    assert np.isnan(value[1]).all()
    assert np.isnan(log_det[1])
    assert diagnostics["solve"].failed.tolist() == [False, True, False]

    def loss(z):
        value, log_det, _ = block.inverse_and_log_det(z)
        return jnp.where(jnp.isnan(log_det), 0, value[:, 0] + log_det).sum()

    np.testing.assert_allclose(jax.grad(loss)(z)[:, 0], [1 / 1.5, 0, 1 / 1.5], rtol=1e-4)


def test_an_implicit_flow_is_a_residual_block_and_an_inverse(x64):
    g_x, g_z = rotation(0.9), lambda z: -0.8 * jnp.sin(z)
    flow = ImplicitFlow(g_x, g_z, (4,), **KNOWN)
    chain = Chain([Residual(g_x, (4,), **KNOWN), Inverse(Residual(g_z, (4,), **KNOWN))])
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 4)))
    for direction in ("forward_and_log_det", "inverse_and_log_det"):
        ours, theirs = getattr(flow, direction)(x), getattr(chain, direction)(x)
        np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-12)
        np.testing.assert_allclose(ours.log_det, theirs.log_det, rtol=1e-12)
    z = flow.forward_and_log_det(x).value
    np.testing.assert_allclose(z + g_z(z), x + g_x(x), rtol=1e-12)


@pytest.mark.parametrize(
    "make", [lambda g, **k: Residual(g, (4,), **k, **KNOWN), lambda g, **k: ImplicitFlow(g, lambda z: 0.3 * z, (4,), **k, **KNOWN)]
)
def test_the_log_det_of_an_inverse_has_the_other_sign(x64, make):
    """Also of an estimate: at the same probes the two cancel."""
    estimator = PowerSeries(terms=20, probes=4, orthogonal=True)
    bijector = make(rotation(0.5), log_det=estimator)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 4)))
    z, log_det, diagnostics = bijector.forward_and_log_det(x, key=jax.random.key(0))
    back = bijector.inverse_and_log_det(z, key=jax.random.key(0))
    np.testing.assert_allclose(back.log_det, -log_det, rtol=1e-5)
    assert diagnostics["standard_error"].shape == (5,)
    assert (np.asarray(diagnostics["standard_error"]) > 0).all()


def test_training_and_evaluation_may_differ_in_the_estimator():
    g, estimators = rotation(0.5, dtype=jnp.float32), {"log_det": ArnoldiQuadrature(steps=2), "eval_log_det": ArnoldiQuadrature(probes=2)}
    block = Residual(g, (4,), **estimators, **KNOWN)
    x = jnp.ones((2, 4))
    model = nnx.List([block])
    assert "standard_error" not in block.forward_and_log_det(x, key=jax.random.key(0)).diagnostics
    model.eval()
    assert np.isfinite(block.forward_and_log_det(x, key=jax.random.key(0)).diagnostics["standard_error"]).all()
    with pytest.raises(ValueError, match="pass key="):
        block.forward_and_log_det(x)


def test_weights_are_prepared_once_per_transformation():
    calls = []

    class Counting:
        def prepare(self, condition):
            calls.append(condition)
            return lambda x: 0.5 * jnp.sin(x)

        def __call__(self, x):
            raise AssertionError("prepared, it is not called")

    block = Residual(Counting(), (4,), **KNOWN)
    block.inverse_and_log_det(jnp.ones((2, 4)))
    assert calls == [None]


def test_the_density_integrates_to_one(x64):
    """On a grid over the plane, through an implicit flow with random weights."""
    rng = np.random.default_rng(3)
    A, B = (jnp.asarray(0.9 * m / np.linalg.norm(m, 2)) for m in rng.standard_normal((2, 2, 2)))
    flow = Flow(StandardNormal((2,)), ImplicitFlow(lambda x: jnp.sin(x @ A), lambda z: jnp.sin(z @ B), (2,), **KNOWN))
    axis = jnp.linspace(-12, 12, 161)
    points = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    total = jnp.exp(jax.jit(flow.log_prob)(points)).sum() * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(total, 1, atol=1e-3)


def test_a_map_that_is_not_certified_to_contract_is_warned_of_or_refused():
    with pytest.warns(UserWarning, match="nothing is known of g's Lipschitz constant"):
        Residual(jnp.sin, (2,))
    stretched = LipschitzMLP(2, width=8, depth=1, bound=1.5, rngs=nnx.Rngs(0))
    with pytest.warns(UserWarning, match=r"the certified Lipschitz bound of g_z is 1\.5"):
        ImplicitFlow(LipschitzMLP(2, width=8, depth=1, rngs=nnx.Rngs(0)), scaled(stretched), (2,))
    with pytest.raises(ValueError, match="expansion='ignore' if you know better"):
        Residual(scaled(stretched), (2,), expansion="refuse")


def scaled(mlp):
    """With kernels so large that the limit is reached."""
    for layer in mlp.layers:
        layer.kernel.kernel[...] = 10 * layer.kernel.kernel[...]
    return mlp
