import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.tasks import Classification
from deqflow.tasks.augment import Augment

IMAGES = jax.random.randint(jax.random.key(0), (64, 5, 4, 2), 1, 256).astype(jnp.uint8)


def candidates(image, shift, mirror):
    """All that may become of an image."""
    for base in (image, image[:, ::-1])[: 1 + mirror]:
        padded = np.pad(base, ((shift, shift), (shift, shift), (0, 0)))
        for i in range(2 * shift + 1):
            for j in range(2 * shift + 1):
                yield padded[i : i + 5, j : j + 4]


@pytest.mark.parametrize(("shift", "mirror", "least"), [(1, False, 7), (1, True, 12), (0, True, 2), (0, False, 1)])
def test_every_image_is_moved_in_its_own_way(shift, mirror, least):
    out = np.asarray(jax.jit(Augment(shift=shift, mirror=mirror))(IMAGES, jax.random.key(1)))
    assert out.dtype == np.uint8
    found = set()
    for before, after in zip(np.asarray(IMAGES), out, strict=True):
        hits = [n for n, other in enumerate(candidates(before, shift, mirror)) if np.array_equal(after, other)]
        assert len(hits) == 1
        found.add(hits[0])
    assert len(found) >= least


def test_the_loss_augments_and_the_evaluation_does_not():
    task = Classification(classes=8, augment=Augment(shift=1))

    class FirstPixels(nnx.Module):
        def __call__(self, x, *, key=None):
            return x[:, 0, :, :].reshape(len(x), 8) / 255.0

    first_pixels = FirstPixels()
    batch = {"x": IMAGES, "y": jnp.zeros(64, jnp.int32)}
    losses = [float(task.loss(first_pixels, batch, jax.random.key(k))[0]) for k in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    plain = Classification(classes=8)
    np.testing.assert_array_equal(*(t.evaluate(first_pixels, batch, jax.random.key(0))["loss"] for t in (task, plain)))


def test_a_negative_shift():
    with pytest.raises(ValueError, match="shift must be >= 0"):
        Augment(shift=-1)
