"""Optimizers and schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deqflow.optim import AdamW, Constant, Cosine, Linear

SCHEDULES = {
    "constant": (Constant(value=0.3, warmup=4), lambda t: 0.3),
    "cosine": (Cosine(peak=0.3, warmup=4, end=0.1), lambda t: 0.1 + 0.2 * (1 + np.cos(np.pi * t)) / 2),
    "linear": (Linear(peak=0.3, warmup=4, end=0.1), lambda t: 0.3 - 0.2 * t),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_follows_its_formula_after_a_linear_warmup(name):
    schedule, formula = SCHEDULES[name]
    rate = schedule.function(steps=24)
    for step in range(4):
        np.testing.assert_allclose(rate(step), formula(0.0) * step / 4, rtol=1e-6)
    for step in range(4, 25):
        np.testing.assert_allclose(rate(step), formula((step - 4) / 20), rtol=1e-6)


def test_adamw_first_update_by_hand():
    """At the first step m̂ = g and v̂ = g², so the update is -lr (g / (|g| + eps) + weight_decay p)."""
    params = {"kernel": jnp.array([[2.0, -1.0]]), "bias": jnp.array([3.0])}
    gradient = {"kernel": jnp.array([[0.5, -4.0]]), "bias": jnp.array([1e-3])}
    transform = AdamW(lr=0.1, weight_decay=0.2).transform(10)
    updates, _ = transform.update(gradient, transform.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[-0.1 * (1 + 0.4), -0.1 * (-1 - 0.2)]], rtol=1e-4)
    np.testing.assert_allclose(updates["bias"], [-0.1], rtol=1e-4)  # no decay: a bias is no kernel


def test_clip_bounds_the_global_norm():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
    gradient = jax.tree.map(lambda p: 100.0 * jnp.ones_like(p), params)
    clipped, free = AdamW(lr=0.1, clip=1.0), AdamW(lr=0.1)
    small = jax.tree.map(lambda g: g / optax.tree.norm(gradient), gradient)
    one, _ = clipped.transform(1).update(gradient, clipped.transform(1).init(params), params)
    other, _ = free.transform(1).update(small, free.transform(1).init(params), params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, other)


def test_schedule_drives_the_learning_rate():
    params = {"a": jnp.ones((1, 1))}
    transform = AdamW(lr=Linear(peak=0.2, warmup=0, end=0.0)).transform(2)
    memory = transform.init(params)
    for expected in (0.2, 0.1):
        updates, memory = transform.update({"a": jnp.ones((1, 1))}, memory, params)
        np.testing.assert_allclose(updates["a"], -expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(lr=-1.0), "lr must be > 0, got -1.0"),
        (lambda: AdamW(lr=1e-3, b1=1.0), "b1 must be >= 0 and < 1, got 1.0"),
        (lambda: AdamW(lr=1e-3, clip=0.0), "clip must be > 0, got 0.0"),
        (lambda: Cosine(peak=-0.1), "peak must be >= 0"),
        (lambda: Constant(value=1.0, warmup=-1), "warmup must be >= 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
