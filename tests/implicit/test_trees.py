import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqflow.implicit.trees import as_floating, check_like, norm, rows


def test_rows_and_back():
    tree = {"a": jnp.arange(12.0).reshape(2, 3, 2), "b": (jnp.arange(2.0), jnp.ones((2, 1), jnp.bfloat16))}
    flat, split = rows(tree, batched=True)
    assert flat.shape == (2, 8)
    assert flat.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, split(flat), tree)
    assert jax.tree.map(lambda leaf: leaf.dtype, split(flat)) == jax.tree.map(lambda leaf: leaf.dtype, tree)
    assert rows(tree, batched=False)[0].shape == (1, 16)


@pytest.mark.parametrize("tree", [(jnp.ones((2, 3)), jnp.ones((3, 3))), (jnp.ones((2, 3)), jnp.ones(()))], ids=["sizes differ", "a scalar"])
def test_rows_needs_one_batch_axis(tree):
    with pytest.raises(ValueError, match="same leading batch axis"):
        rows(tree, batched=True)


@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.ones(3, bool), jnp.ones(3, jnp.complex64)], ids=["int", "bool", "complex"])
def test_as_floating_names_the_offending_leaf(leaf):
    with pytest.raises(TypeError, match=rf"{leaf.dtype} at z0\['b'\]"):
        as_floating({"a": jnp.ones(2), "b": leaf}, "z0")


def test_as_floating_makes_types_definite():
    assert not as_floating(jnp.asarray(1.0), "z0").weak_type
    assert jnp.result_type(as_floating(2.0, "z0")) == jnp.float32
    with pytest.raises(ValueError, match="holds no array"):
        as_floating({}, "z0")


def test_check_like_says_where():
    like = {"a": jnp.ones((2, 3))}
    check_like({"a": jnp.zeros((2, 3))}, like, "f(z)")
    with pytest.raises(ValueError, match=r"f\(z\) must have the shape.* at \['a'\]: expected float32\[2, 3\], got float32\[2, 4\]"):
        check_like({"a": jnp.zeros((2, 4))}, like, "f(z)")
    with pytest.raises(ValueError, match="got float16"):
        check_like({"a": jnp.zeros((2, 3), jnp.float16)}, like, "f(z)")
    with pytest.raises(ValueError, match="structure"):
        check_like([jnp.zeros((2, 3))], like, "f(z)")


def test_norms_of_half_precision_are_summed_in_float32():
    a = jnp.full((1, 4096), 0.1, jnp.bfloat16)
    np.testing.assert_allclose(norm(a), 64 * np.float32(a[0, 0]), rtol=1e-5)
