"""Attention and the block around it: causal, relative, and the formula itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqflow.nn import CausalAttention, TransformerBlock

KEY = jax.random.key(0)


@pytest.fixture
def attention():
    attention = CausalAttention(8, heads=2, span=5, rngs=nnx.Rngs(0))
    attention.bias[...] = jax.random.normal(KEY, attention.bias.shape)
    return attention


@pytest.fixture
def block():
    block = TransformerBlock(8, heads=2, span=5, dropout=0.5, rngs=nnx.Rngs(0))
    block.attention.bias[...] = jax.random.normal(KEY, block.attention.bias.shape)
    return block


def test_attention_is_its_formula(attention):
    x = jax.random.normal(KEY, (7, 8))
    want = np.zeros((7, 8))
    kernel = np.asarray(attention.qkv.kernel[...])
    for head in range(2):
        columns = slice(4 * head, 4 * head + 4)  # of each third of the kernel
        q, k, v = (
            np.asarray(x) @ part[:, columns] for part in np.split(kernel.reshape(8, 2, 3, 4).transpose(0, 2, 1, 3).reshape(8, 24), 3, 1)
        )
        for i in range(7):
            scores = np.array([q[i] @ k[j] / 2 + attention.bias[head, min(i - j, 4)] for j in range(i + 1)])
            weights = np.exp(scores - scores.max())
            want[i, columns] = weights @ v[: i + 1] / weights.sum()
    np.testing.assert_allclose(attention(x[None])[0], attention.out(want.astype(np.float32)), atol=1e-5)


def test_the_future_does_not_change_the_past(block):
    x = jax.random.normal(KEY, (2, 7, 8))
    later = x.at[:, 4:].set(jax.random.normal(jax.random.key(1), (2, 3, 8)))
    call = nnx.jit(lambda block, x: block(x))
    np.testing.assert_array_equal(call(block, x)[:, :4], call(block, later)[:, :4])
    assert not np.allclose(call(block, x)[:, 4:], call(block, later)[:, 4:])


def test_only_distances_count(block):
    """A sequence that nothing precedes but positions without weight gives the same wherever it stands."""
    x = jax.random.normal(KEY, (1, 4, 8))
    scores = block.attention._position(4, 4)
    np.testing.assert_array_equal(block.attention._position(4, 9)[:, :, 5:], scores)
    np.testing.assert_allclose(np.diagonal(scores, -1, 1, 2)[:, :1], np.diagonal(scores, -1, 1, 2)[:, 1:2])
    np.testing.assert_allclose(block(x), block(jnp.tile(x, (1, 1, 1)), past=x[:, :0]), atol=1e-6)


def test_a_past_continues_the_sequence(block):
    x = jax.random.normal(KEY, (2, 7, 8))
    np.testing.assert_allclose(block(x[:, 3:], past=x[:, :3]), block(x)[:, 3:], atol=1e-5)


def test_masks_leave_out_whole_channels_and_only_in_training(block):
    x = jnp.ones((3, 4, 8))
    for mask in block.masks(x, KEY):
        assert mask.shape == (3, 1, 8)
        assert set(np.unique(mask)) == {0.0, 2.0}
    assert block.masks(x, None) is None
    dropped = jnp.zeros((3, 1, 8))
    np.testing.assert_array_equal(block(x, masks=(dropped, dropped)), x)
    block.eval()
    assert block.masks(x, KEY) is None


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="got 3 heads for width 8"):
        CausalAttention(8, heads=3, span=5, rngs=nnx.Rngs(0))
