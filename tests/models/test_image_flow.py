"""Image flows with each kind of step: what a density model must be, and bits per dimension from the bytes of a file on."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deqflow.data.arrays import Arrays
from deqflow.flows import ArnoldiQuadrature, Exact
from deqflow.flows.base import Distribution
from deqflow.implicit import GMRES, Anderson, Implicit
from deqflow.models.image_flow import ImageFlow
from deqflow.models.image_steps import GlowStep, ImplicitStep, RealNVPStep, ResidualStep
from deqflow.registry import kinds, resolve
from deqflow.tasks import Density

IMAGE = (8, 8, 1)
LIPSCHITZ = {"width": 4, "bound": 0.8, "parametrise": "almost_orthogonal"}
EXACT = {"log_det": ArnoldiQuadrature(steps=2), "eval_log_det": Exact()}
STEPS = {
    "glow": GlowStep(width=4),
    "realnvp": RealNVPStep(width=4),
    "residual": ResidualStep(**LIPSCHITZ, **EXACT),
    "implicit": ImplicitStep(**LIPSCHITZ, **EXACT, solver=Anderson(rtol=1e-4), gradient=Implicit(linear=GMRES(rtol=1e-10))),
}


def build(name="glow", **options):
    return ImageFlow(**{"scales": 2, "steps": 2, "step": STEPS[name], "input_shape": IMAGE, "rngs": nnx.Rngs(0)} | options)


def perturbed(model):
    """With random parameters, as after some training, in evaluation mode and in the precision of the day."""
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.05 * jax.random.normal(k, leaf.shape, leaf.dtype) for leaf, k in zip(leaves, keys, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, noisy), rest)


@pytest.mark.parametrize("name", STEPS)
def test_round_trip_and_log_determinants(name, x64):
    """Of real images, against the whole Jacobian; scales, which are the same for every step, in Glow alone."""
    model = perturbed(build(name, scales=2 if name == "glow" else 1))
    bijector = model.flow.bijector
    x = jax.random.normal(jax.random.key(0), (2, *IMAGE))

    @jax.jit
    def both_ways(x):
        z = bijector.forward_and_log_det(x)
        back = bijector.inverse_and_log_det(z.value)
        return z.value, z.log_det, back.value, back.log_det

    @jax.jit
    def jacobian(x):
        def flat(row):
            parts = bijector.forward_and_log_det(row.reshape(1, *IMAGE)).value
            return jnp.concatenate([part.ravel() for part in parts])

        return jax.jacfwd(flat)(x.ravel())

    latents, log_det, back, inverse_log_det = both_ways(x)
    assert [part.shape for part in latents] == ([(2, 4, 4, 2), (2, 2, 2, 8)] if name == "glow" else [(2, 4, 4, 4)])
    np.testing.assert_allclose(back, x, atol=1e-10)
    expected = [np.linalg.slogdet(jacobian(row))[1] for row in x]
    np.testing.assert_allclose(log_det, expected, atol=1e-9)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-9)


@pytest.mark.parametrize("name", STEPS)
def test_integer_images_train(name):
    x = jnp.asarray(np.random.default_rng(0).binomial(16, 0.3, (32, *IMAGE)), jnp.uint8)
    model = build(name, scales=1, steps=1, levels=17)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def loss(p):
            return Density(levels=17).loss(nnx.merge(graphdef, p, rest), {"x": x}, jax.random.key(0))[0]

        value, slopes = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), state, value, slopes

    state = optimizer.init(params)
    params, state, before, _ = step(params, state)
    _, _, after, slopes = step(params, state)
    assert after < before
    for path, slope in jax.tree.leaves_with_path(slopes):
        assert np.isfinite(slope).all(), path
        assert (np.asarray(slope) != 0).any(), path


def test_initialisation_likelihood_and_temperatures():
    x = jnp.asarray(np.random.default_rng(0).binomial(16, 0.3, (16, *IMAGE)), jnp.uint8)
    model = build(levels=17, steps=1)
    model.initialize(x, jax.random.key(0))
    model.eval()
    latents, log_det, _ = model.flow.bijector.forward_and_log_det(x, key=jax.random.key(0))
    for part in latents:
        np.testing.assert_allclose(part.mean((0, 1, 2)), 0, atol=1e-3)
        np.testing.assert_allclose(part.std((0, 1, 2)), 1, atol=1e-3)
    normal = sum(-0.5 * (np.asarray(part).reshape(16, -1) ** 2 + math.log(2 * math.pi)).sum(1) for part in latents)
    np.testing.assert_allclose(model.log_prob(x, key=jax.random.key(0)), normal + log_det, rtol=1e-5)
    sample = jax.jit(lambda key, temperature: model.sample(key, 2, temperature=temperature))
    warm, cold = sample(jax.random.key(2), 1.0), sample(jax.random.key(2), 1e-6)
    assert warm.shape == (2, *IMAGE)
    assert (warm[0] != warm[1]).any()
    np.testing.assert_array_equal(cold[0], cold[1])


class Logistic(Distribution):
    """What the logit makes of uniform numbers: `p(z) = σ(z) σ(-z)`."""

    def __init__(self, event_shape):
        self.event_shape = event_shape

    def log_prob(self, z):
        return sum((jax.nn.log_sigmoid(part) + jax.nn.log_sigmoid(-part)).reshape(len(part), -1).sum(1) for part in z)

    def sample(self, key, n, *, temperature=1.0):
        keys = jax.random.split(key, len(self.event_shape))
        return tuple(temperature * jax.random.logistic(k, (n, *shape)) for k, shape in zip(keys, self.event_shape, strict=True))


def test_a_uniform_density_of_bytes_needs_eight_bits(tmp_path):
    """From a file of bytes to what is reported: all 256 values are as likely, so that any image takes 8 bits for each of its numbers.

    Couplings start as the identity, so a logistic base makes the density of `(x + u) / 256` uniform, all but what the margin λ of the logit
    leaves outside: 8 - log2(1 - 2 λ).
    """
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
    images[0], images[1] = 0, 255
    np.save(tmp_path / "images.npy", images)
    source = Arrays(train=str(tmp_path / "images.npy"), batch_size=4)
    spec = source.spec()
    margin = 1e-3
    model = build("realnvp", scales=1, steps=1, logit_lambda=margin, input_shape=spec.input_shape, levels=spec.levels)
    model.flow.base = Logistic(model.flow.base.event_shape)
    model.eval()
    batch = {"x": np.concatenate([source.split(name).gather(np.arange(2))["x"] for name in ("train", "validation", "test")])}
    task = Density(levels=spec.levels, copies=2)
    rows = jax.jit(functools.partial(task.evaluate, model))(batch, jax.random.key(0))
    np.testing.assert_allclose(rows["bits_per_dim"], np.full(6, 8 - math.log2(1 - 2 * margin)), atol=2e-4)
    samples = np.asarray(jax.jit(lambda key: model.sample(key, 40))(jax.random.key(0)))
    np.testing.assert_array_equal(samples, np.round(samples))
    assert samples.min() >= 0
    assert samples.max() <= 255
    assert abs(samples.mean() - 127.5) < 6.8  # four standard errors of the mean of 1920 numbers


def test_every_kind_of_step_is_tested():
    assert {name: type(step) for name, step in STEPS.items()} == {kind: resolve("step", kind) for kind in kinds("step")}
    assert resolve("model", "image_flow") is ImageFlow


def test_steps_certify_what_must_contract():
    assert build("glow").lipschitz_bounds() == []
    bounds = build("implicit").lipschitz_bounds()
    assert len(bounds) == 8
    assert max(bounds) <= 0.8


def test_mistakes_have_one_clear_message():
    with pytest.raises(ValueError, match=r"scales=3 halves rows and columns 3 times, but 28 x 28 pixels are not multiples of 8"):
        build(scales=3, input_shape=(28, 28, 1))
    with pytest.raises(ValueError, match=r"takes images \(rows, columns, channels\), got examples of shape \(2,\)"):
        build(input_shape=(2,))
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        build(steps=0)
    with pytest.raises(ValueError, match="bound must be > 0 and < 1, got 1.0"):
        ResidualStep(bound=1.0)
    with pytest.raises(ValueError, match=r"expected data of shape \(batch, 8, 8, 1\), got \(5, 8, 8, 3\)"):
        build().log_prob(jnp.zeros((5, 8, 8, 3)))
    with pytest.raises(ValueError, match="pass key="):
        build(levels=17).log_prob(jnp.zeros((5, *IMAGE)))
