"""The training step against a loop written out by hand with other means, and what a state remembers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.data.spec import DataSpec
from deqflow.optim import AdamW, Linear
from deqflow.tasks.task import Task
from deqflow.train.settings import TrainSettings
from deqflow.train.step import Program, Stream, abstract_batch, random_key

SPEC = DataSpec(input_shape=(3,), dtype="float32", classes=2)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 1, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] += 1
        return self.layer(x)[:, 0]


class Regression(Task):
    """Squared error with noise on the inputs."""

    monitor = "loss"
    maximize = False

    def __init__(self, noise=0.1):
        self.noise = noise

    def initialize(self, model, batch, key):
        pass

    def loss(self, model, batch, key):
        error = model(batch["x"] + self.noise * jax.random.normal(key, batch["x"].shape)) - batch["y"]
        return (error**2).mean(), {"absolute": jnp.abs(error).mean()}

    def evaluate(self, model, batch, key):
        return {"loss": (model(batch["x"]) - batch["y"]) ** 2, "noise": jax.random.normal(key, batch["y"].shape)}

    def summarize(self, rows):
        return {"loss": float(rows["loss"].mean())}

    def pictures(self, model, rows, batch, key):
        return {}


def batch(step):
    rng = np.random.default_rng([7, step])
    return {"x": rng.normal(size=(4, 3)).astype(np.float32), "y": rng.integers(0, 2, 4).astype(np.int32)}


def make(noise=0.1, **settings):
    model = Net(nnx.Rngs(0))
    settings = TrainSettings(**{"steps": 7, "log_every": 3, **settings})
    optimizer = AdamW(lr=Linear(peak=0.05, warmup=2), weight_decay=0.1, clip=0.5)
    program = Program(model, Regression(noise), optimizer, settings, seed=11, batch=abstract_batch(SPEC, 4))
    return program, program.initial(program.layout.leaves(model))


def by_hand(steps):
    """Adam with decay and clipping in NumPy float64, the gradient of the squared error in closed form."""
    layer = Net(nnx.Rngs(0)).layer
    p = {"kernel": np.asarray(layer.kernel[...], np.float64), "bias": np.asarray(layer.bias[...], np.float64)}
    m = {name: np.zeros_like(value) for name, value in p.items()}
    v = {name: np.zeros_like(value) for name, value in p.items()}
    average, history = dict(p), []
    for t in range(steps):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(11), 2), t)
        x = np.asarray(batch(t)["x"] + 0.1 * jax.random.normal(key, (4, 3)), np.float64)
        error = x @ p["kernel"][:, 0] + p["bias"][0] - batch(t)["y"]
        g = {"kernel": 2 / 4 * (x.T @ error)[:, None], "bias": np.array([2 * error.mean()])}
        norm = np.sqrt(sum((value**2).sum() for value in g.values()))
        history.append({"loss": (error**2).mean(), "absolute": np.abs(error).mean(), "gradient_norm": norm})
        lr = 0.05 * t / 2 if t < 2 else 0.05 * (1 - (t - 2) / 5)
        decay = min(0.9, (1 + t) / (10 + t))
        for name in p:
            clipped = g[name] * min(1.0, 0.5 / norm)
            m[name] = 0.9 * m[name] + 0.1 * clipped
            v[name] = 0.999 * v[name] + 0.001 * clipped**2
            update = m[name] / (1 - 0.9 ** (t + 1)) / (np.sqrt(v[name] / (1 - 0.999 ** (t + 1))) + 1e-8)
            p[name] = p[name] - lr * (update + (0.1 * p[name] if p[name].ndim > 1 else 0))
            average[name] = decay * average[name] + (1 - decay) * p[name]
    return p, average, history


def test_step_is_adamw_on_the_task_loss():
    program, state = make(ema=0.9)
    rows = {}
    for step in range(7):
        state, means = program.step(state, batch(step))
        rows[step + 1] = {name: float(value) for name, value in means.items()}
    p, average, history = by_hand(7)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(state[f"params/layer.{name}"], p[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state[f"average/layer.{name}"], average[name], rtol=1e-4, atol=1e-6)
    assert int(state["step"]) == 7
    assert float(state["model/calls"]) == 7  # variables that are no parameters are carried along
    for last, first in ((3, 0), (6, 3), (7, 6)):  # a row holds the means since the row before
        for name in history[0]:
            np.testing.assert_allclose(rows[last][name], np.mean([entry[name] for entry in history[first:last]]), rtol=1e-4)


def test_state_survives_a_trip_through_the_host_between_two_rows():
    """Resumed in the middle of a logging interval, steps and means go on bitwise."""
    program, state = make(ema=0.9)
    _, other = make(ema=0.9)
    for step in range(4):
        state, _ = program.step(state, batch(step))
        other, _ = program.step(other, batch(step))
    other = {name: jnp.array(np.array(leaf)) for name, leaf in other.items()}
    for step in range(4, 6):
        state, means = program.step(state, batch(step))
        other, others = program.step(other, batch(step))
    for name in state:
        np.testing.assert_array_equal(state[name], other[name])
    for name in means:
        np.testing.assert_array_equal(means[name], others[name])


def test_a_batch_in_parts_is_the_batch():
    (whole, state), (parts, other) = make(noise=0.0, ema=0.9), make(noise=0.0, ema=0.9, accumulate=2)
    for step in range(5):
        state, means = whole.step(state, batch(step))
        other, others = parts.step(other, batch(step))
    for name in state:
        np.testing.assert_allclose(other[name], state[name], rtol=1e-5, atol=1e-7)
    for name in means:
        np.testing.assert_allclose(others[name], means[name], rtol=1e-5)
    assert float(other["model/calls"]) == 5  # once per step, not per part


def test_parts_of_a_batch_have_noise_of_their_own():
    program, state = make(accumulate=2)
    _, means = program.step(state, batch(0))
    layer = Net(nnx.Rngs(0)).layer
    absolute = []
    for part in range(2):
        key = jax.random.fold_in(random_key(11, Stream.LOSS, 0), part)
        x = batch(0)["x"][part::2]
        absolute.append(jnp.abs(layer(x + 0.1 * jax.random.normal(key, x.shape))[:, 0] - batch(0)["y"][part::2]))
    np.testing.assert_allclose(means["absolute"], jnp.stack(absolute).mean(), rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_step_compiles_once(accumulate):
    program, state = make(accumulate=accumulate)
    for step in range(3):
        state, _ = program.step(state, batch(step))
    assert program.step._cache_size() == 1


def test_evaluation_uses_the_average_and_the_same_noise_each_time():
    program, state = make(ema=0.9)
    for step in range(3):
        state, _ = program.step(state, batch(step))
    rows, again = program.evaluate(state, batch(9), 0), program.evaluate(state, batch(9), 0)
    np.testing.assert_array_equal(rows["noise"], again["noise"])
    assert not np.array_equal(rows["noise"], program.evaluate(state, batch(9), 1)["noise"])
    expected = batch(9)["x"] @ np.asarray(state["average/layer.kernel"])[:, 0] + np.asarray(state["average/layer.bias"])[0]
    np.testing.assert_allclose(rows["loss"], (expected - batch(9)["y"]) ** 2, rtol=1e-4, atol=1e-6)


def test_keys_differ_by_stream_and_step():
    keys = {tuple(jax.random.key_data(random_key(seed, stream, i)).tolist()) for seed in (0, 1) for stream in Stream for i in (0, 1)}
    assert len(keys) == 2 * len(Stream) * 2


@pytest.mark.parametrize("settings", [{"ema": None}, {"ema": 0.9}])
def test_abstract_state_has_the_shapes_of_the_real_one(settings):
    program, state = make(**settings)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in state.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in program.abstract.items()
    }
    state, _ = program.step(state, batch(0))
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in state.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in program.abstract.items()
    }
