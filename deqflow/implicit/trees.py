"""Pytrees of samples seen as one matrix, a row per sample."""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec, auto_axes
from jaxtyping import Array, Bool, Float, Shaped

T = TypeVar("T")

Vectors = Float[Array, "batch n"]
"""A state as solvers see it: one row per sample."""

Map = Callable[[Vectors], Vectors]
"""A function of states that treats every row by itself."""


def as_floating(tree: T, name: str) -> T:
    """`tree` with every leaf a real floating-point array of definite (not weak) type.

    Raises:
      TypeError: for a leaf of another type.
      ValueError: for a tree without leaves.
    """

    def convert(path: Any, leaf: Any) -> Array:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            split = jnp.issubdtype(dtype, jnp.complexfloating)
            hint = "write its real and imaginary parts as two arrays" if split else "convert it to float"
            raise TypeError(f"{name} must hold real floating-point arrays, got {dtype} at {name}{jax.tree_util.keystr(path)}; {hint}")
        return lax.convert_element_type(leaf, dtype)

    if not jax.tree.leaves(tree):
        raise ValueError(f"{name} holds no array, so there is nothing to solve for")
    return jax.tree_util.tree_map_with_path(convert, tree)


def check_like(out: Any, like: Any, name: str) -> None:
    """Raise `ValueError` unless `out`, which `name` describes, has the structure, shapes and dtypes of `like`."""
    expected, got = jax.tree.structure(like), jax.tree.structure(out)
    if expected != got:
        raise ValueError(f"{name} must have the structure of its argument: expected {expected}, got {got}")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(like), jax.tree.leaves(out), strict=True):
        if a.shape != jnp.shape(b) or a.dtype != jnp.result_type(b):
            where = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise ValueError(
                f"{name} must have the shape and dtype of its argument{where}: "
                f"expected {a.dtype}{list(a.shape)}, got {jnp.result_type(b)}{list(jnp.shape(b))}"
            )


def rows(tree: T, batched: bool) -> tuple[Vectors, Callable[[Vectors], T]]:
    """`tree` as a matrix with a row per sample (a single row if not `batched`), and the way back.

    Leaves of different floating-point types meet in their common type.

    Raises:
      ValueError: if `batched` and the leaves do not share a leading axis.
    """
    leaves, structure = jax.tree.flatten(tree)
    if batched:
        sizes = {leaf.shape[:1] for leaf in leaves}
        if len(sizes) != 1 or () in sizes:
            shapes = ", ".join(str(leaf.shape) for leaf in leaves)
            raise ValueError(f"with batched=True every leaf needs the same leading batch axis, got shapes {shapes}; or say batched=False")
    dtype = jnp.result_type(*leaves)
    batch = leaves[0].shape[0] if batched else 1
    widths = [math.prod(leaf.shape[1:] if batched else leaf.shape) for leaf in leaves]

    def join(tree: T) -> Vectors:
        parts = [jnp.reshape(leaf, (batch, width)).astype(dtype) for leaf, width in zip(jax.tree.leaves(tree), widths, strict=True)]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

    def split(vectors: Vectors) -> T:
        offsets = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
        parts = jnp.split(vectors, offsets, axis=1)
        return jax.tree.unflatten(
            structure, [jnp.reshape(part, leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        )

    return join(tree), split


def on_rows(f: Callable[[T], T], like: T, batched: bool, name: str) -> Map:
    """`f` as a function of the matrix that `rows` makes, checking on every trace that it returns what it takes."""
    _, split = rows(like, batched)

    def mapped(vectors: Vectors) -> Vectors:
        tree = split(vectors)
        out = f(tree)
        check_like(out, tree, name)
        return rows(out, batched)[0]

    return mapped


def accumulator(dtype: Any) -> Any:
    """The type in which sums over a state are formed: its own, or float32 for a narrower one."""
    return jnp.promote_types(dtype, jnp.float32)


def dot(a: Float[Array, "batch *m n"], b: Vectors) -> Float[Array, "batch *m"]:
    """Per-sample inner products of the rows of `b` with (each of the rows of) `a`."""
    return jnp.einsum("b...n,bn->b...", a, b, precision="highest", preferred_element_type=accumulator(b.dtype))


def norm(a: Vectors) -> Float[Array, " batch"]:
    """Per-sample Euclidean norms; the derivative of that of zero is zero."""
    square = dot(a, a)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def relative(residual: Float[Array, " batch"], size: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """`residual / size`, 0 for no residual and the residual itself for no size."""
    return jnp.where(residual == 0, 0, residual / jnp.where(size > 0, size, 1))


def combine(weights: Float[Array, "batch m"], a: Float[Array, "batch m n"]) -> Vectors:
    """Per-sample linear combinations `Σ_j weights_j a_j`."""
    total = jnp.einsum("bm,bmn->bn", weights, a, precision="highest", preferred_element_type=accumulator(a.dtype))
    return total.astype(a.dtype)


def select(rows: Bool[Array, " batch"], a: T, b: T) -> T:
    """Per sample, the rows of `a` where `rows` holds and those of `b` elsewhere; scalars, which samples share, are those of `a`."""
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b) if a.ndim else a, a, b)


def per_row(like: Vectors, value: Any, dtype: Any) -> Shaped[Array, "batch *m"]:
    """`value` once for every row of `like`, and sharded over devices as its rows are, where arrays made from nothing would not be."""
    value = jnp.asarray(value, dtype)
    zero = jnp.sum(jnp.zeros_like(like, dtype), axis=1, dtype=dtype)
    return jnp.expand_dims(zero, tuple(range(1, 1 + value.ndim))) + value


def per_sample(function: Callable[..., Array], *arrays: Shaped[Array, "batch ..."]) -> Array:
    """`function(*arrays)`, for a function that keeps the batch axis, with explicit mesh axes left to the compiler meanwhile.

    JAX's factorisations of small matrices cannot be traced over such axes otherwise.
    """
    sharding = jax.typeof(arrays[0]).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function(*arrays)
    batch = PartitionSpec(sharding.spec[0])
    return cast(Array, auto_axes(function, axes=sharding.mesh.axis_names, out_sharding=batch)(*arrays))
