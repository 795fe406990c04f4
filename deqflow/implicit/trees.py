"""Pytrees of samples seen as one array, a row per sample."""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec, auto_axes
from jaxtyping import Array, Bool, Float, Shaped

T = TypeVar("T")

Vectors = Float[Array, "batch *n"]
"""A state as solvers see it: one row per sample, which may have any shape and is a vector all the same."""

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
    """`tree` as one array with a row per sample (a single row if not `batched`), and the way back.

    A single leaf keeps its shape: XLA on the CPU fuses a reshape into what computes the leaf, and then does not vectorise it. Several are
    put side by side in a matrix, in their common type.

    Raises:
      ValueError: if `batched` and the leaves do not share a leading axis.
    """
    leaves, structure = jax.tree.flatten(tree)
    if batched:
        sizes = {leaf.shape[:1] for leaf in leaves}
        if len(sizes) != 1 or () in sizes:
            shapes = ", ".join(str(leaf.shape) for leaf in leaves)
            raise ValueError(f"with batched=True every leaf needs the same leading batch axis, got shapes {shapes}; or say batched=False")
    if len(leaves) == 1:
        if batched:
            return leaves[0], lambda vectors: jax.tree.unflatten(structure, [vectors])
        return leaves[0][None], lambda vectors: jax.tree.unflatten(structure, [vectors[0]])
    dtype = jnp.result_type(*leaves)
    batch = leaves[0].shape[0] if batched else 1
    widths = [math.prod(leaf.shape[1:] if batched else leaf.shape) for leaf in leaves]

    def join(tree: T) -> Vectors:
        parts = [jnp.reshape(leaf, (batch, width)).astype(dtype) for leaf, width in zip(jax.tree.leaves(tree), widths, strict=True)]
        return jnp.concatenate(parts, axis=1)

    def split(vectors: Vectors) -> T:
        offsets = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
        parts = jnp.split(vectors, offsets, axis=1)
        return jax.tree.unflatten(
            structure, [jnp.reshape(part, leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        )

    return join(tree), split


def on_rows(f: Callable[[T], T], like: T, batched: bool, name: str) -> Map:
    """`f` as a function of the array that `rows` makes, checking on every trace that it returns what it takes."""
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


def matrix(vectors: Vectors) -> Float[Array, "batch n"]:
    """Every row as a vector."""
    return vectors.reshape(vectors.shape[0], math.prod(vectors.shape[1:]))


def dot(a: Float[Array, "batch *m_n"], b: Vectors) -> Float[Array, "batch *m"]:
    """Per-sample inner products of the rows of `b` with (each of the rows of) `a`."""
    a, b = a.reshape(*a.shape[: a.ndim - b.ndim + 1], math.prod(b.shape[1:])), matrix(b)
    return jnp.einsum("b...n,bn->b...", a, b, precision="highest", preferred_element_type=accumulator(b.dtype))


def norm(a: Vectors) -> Float[Array, " batch"]:
    """Per-sample Euclidean norms; the derivative of that of zero is zero."""
    square = dot(a, a)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def finite(a: Shaped[Array, "batch *m"]) -> Bool[Array, " batch"]:
    """Which rows hold finite numbers only."""
    return jnp.all(jnp.isfinite(a), axis=tuple(range(1, a.ndim)))


def relative(residual: Float[Array, " batch"], size: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """`residual / size`, 0 for no residual and the residual itself for no size."""
    return jnp.where(residual == 0, 0, residual / jnp.where(size > 0, size, 1))


def combine(weights: Float[Array, "batch m"], a: Float[Array, "batch m *n"]) -> Vectors:
    """Per-sample linear combinations `Σ_j weights_j a_j`."""
    flat = a.reshape(*a.shape[:2], math.prod(a.shape[2:]))
    total = jnp.einsum("bm,bmn->bn", weights, flat, precision="highest", preferred_element_type=accumulator(a.dtype))
    return total.astype(a.dtype).reshape(a.shape[0], *a.shape[2:])


def scale(numbers: Float[Array, " batch"], vectors: Vectors) -> Vectors:
    """Every row times its number."""
    return over(numbers, vectors) * vectors


def over(numbers: Shaped[Array, " batch"], like: Shaped[Array, "batch *n"]) -> Shaped[Array, "batch *ones"]:
    """A number per row, with axes of size one so that it broadcasts over the rows of `like`."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1))


def select(rows: Bool[Array, " batch"], a: T, b: T) -> T:
    """Per sample, the rows of `a` where `rows` holds and those of `b` elsewhere; scalars, which samples share, are those of `a`."""
    return jax.tree.map(lambda a, b: jnp.where(over(rows, a), a, b) if a.ndim else a, a, b)


def per_row(like: Vectors, value: Any, dtype: Any) -> Shaped[Array, "batch *m"]:
    """`value` once for every row of `like`, and sharded over devices as its rows are, where arrays made from nothing would not be."""
    value = jnp.asarray(value, dtype)
    zero = jnp.sum(jnp.zeros_like(like, dtype), axis=tuple(range(1, like.ndim)), dtype=dtype)
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
