"""Both monotone operators, against dense matrices built by another route."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from deqflow.nn import MonotoneConv, MonotoneDense
from deqflow.nn.conv import conv_same, transposed

M, SKEW = 0.3, 0.7


def convolution(kernel, border):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda z: lax.conv_general_dilated(z, kernel, (1, 1), border, dimension_numbers=numbers, precision="highest")


# operator, the shape of one z, and the maps A and B written without it
CASES = {
    "dense": (lambda: MonotoneDense(6, m=M, skew=SKEW, rngs=nnx.Rngs(0)), (6,), lambda A: lambda z: z @ A.T, lambda B: lambda z: z @ B.T),
    "conv": (
        lambda: MonotoneConv(3, m=M, skew=SKEW, rngs=nnx.Rngs(0)),
        (4, 5, 3),
        lambda A: convolution(A, [(1, 1)] * 2),
        lambda B: convolution(B, "SAME"),
    ),
    "conv of size 5": (
        lambda: MonotoneConv(2, size=5, m=M, skew=SKEW, rngs=nnx.Rngs(0)),
        (3, 4, 2),
        lambda A: convolution(A, [(2, 2)] * 2),
        lambda B: convolution(B, "SAME"),
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys(), scope="module")
def case(request):
    make, shape, A, B = request.param
    operator = make()
    # Far from where it starts, as training may take it.
    for parameter in (operator.A, operator.B):
        parameter[...] = 3 * parameter[...] + 0.1
    return operator, shape, A, B


def matrix(f, shape):
    """The matrix of a linear map of single images or vectors, computed in float64."""
    with jax.enable_x64(True):
        jacobian = jax.jit(jax.jacobian(lambda z: f(z[None])[0]))
        return np.asarray(jacobian(jnp.zeros(shape, jnp.float64))).reshape(-1, np.prod(shape))


def wide(parameter):
    with jax.enable_x64(True):
        return jnp.asarray(np.asarray(parameter[...]), jnp.float64)


def used(operator, shape):
    """The matrix of the weights as the operator computes them in float32."""
    weight = wide(operator.weight())
    return matrix(lambda z: operator.apply(weight, z), shape)


def test_is_the_formula_also_at_the_border(case):
    operator, shape, A, B = case
    W, A, B = used(operator, shape), matrix(A(wide(operator.A)), shape), matrix(B(wide(operator.B)), shape)
    np.testing.assert_allclose(W, (1 - M) * np.eye(len(W)) - A.T @ A + SKEW * (B - B.T), atol=1e-5)


def test_the_certificate_is_below_the_smallest_eigenvalue_and_close_to_m(case):
    operator, shape, _, _ = case
    W = used(operator, shape)
    smallest = np.linalg.eigvalsh(np.eye(len(W)) - (W + W.T) / 2)[0]
    assert M - 1e-4 < operator.monotonicity() <= min(M, smallest)


def test_the_certificate_sees_weights_that_are_not_what_they_should_be(case, monkeypatch):
    operator, _, _, _ = case
    wrong = np.array(operator.weight())
    wrong[..., 0, 0] += 0.01
    monkeypatch.setattr(type(operator), "weight", lambda self: wrong)
    assert operator.monotonicity() < M - 0.009


def test_norms_are_upper_bounds(case):
    operator, shape, A, B = case
    A, B = matrix(A(wide(operator.A)), shape), matrix(B(wide(operator.B)), shape)
    for bound, part in zip(jax.jit(operator.norms)(), (A.T @ A, SKEW * (B - B.T)), strict=True):
        assert np.linalg.norm(part, 2) <= bound <= 3 * np.linalg.norm(part, 2)


def test_transposes(case):
    operator, shape, _, _ = case
    x, y = np.random.default_rng(0).standard_normal((2, 3, *shape)).astype(np.float32)
    (back,) = jax.jit(jax.linear_transpose(operator, x))(y)
    np.testing.assert_allclose(np.vdot(jax.jit(operator)(x), y), np.vdot(x, back), rtol=1e-4)
    np.testing.assert_allclose(back.reshape(3, -1), y.reshape(3, -1) @ used(operator, shape), rtol=1e-4, atol=1e-4)
    if isinstance(operator, MonotoneConv):
        np.testing.assert_allclose(conv_same(jnp.asarray(y), transposed(operator.weight())), back, rtol=1e-4, atol=1e-5)


def test_the_resolvent(case):
    operator, shape, _, _ = case
    resolvent = operator.resolvent(operator.weight(), 0.4)
    if isinstance(operator, MonotoneConv):
        assert resolvent is None
        return
    v = np.random.default_rng(0).standard_normal((2, 3, *shape)).astype(np.float32)
    W = used(operator, shape)
    np.testing.assert_allclose(resolvent(v), v @ np.linalg.inv(np.eye(6) + 0.4 * (np.eye(6) - W)).T, rtol=1e-4, atol=1e-5)


def test_starts_with_norms_near_one():
    for operator in (MonotoneDense(64, skew=1.0, rngs=nnx.Rngs(0)), MonotoneConv(16, skew=1.0, rngs=nnx.Rngs(0))):
        assert all(0.8 < norm < 2 for norm in jax.jit(operator.norms)())


@pytest.mark.parametrize("m", [0.0, -1.0, float("nan"), float("inf")])
def test_m_must_be_positive(m):
    with pytest.raises(ValueError, match="m must be positive and finite"):
        MonotoneDense(3, m=m, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("size", [4, 0, -1])
def test_kernels_need_a_centre(size):
    with pytest.raises(ValueError, match="size must be odd and positive"):
        MonotoneConv(3, size=size, rngs=nnx.Rngs(0))
