"""Random vectors whose second moment is the identity."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from deqflow.implicit.trees import Vectors, accumulator


def draw(key: Key[Array, ""], like: Vectors, count: int, *, orthogonal: bool = False) -> Float[Array, "count batch *event"]:
    """`count` independent probes v for every row of `like`, with `E[v vᵀ] = I` and `‖v‖² = n`, the number of dimensions.

    Args:
      key: randomness.
      like: states; the probes have their shape and type.
      count: how many.
      orthogonal: whether the probes of a row are orthogonal to each other: the first columns of a random orthogonal matrix, times √n.
        Otherwise their entries are independent signs, which of all independent entries give a trace the least variance.

    Raises:
      ValueError: for more orthogonal probes than dimensions.

    Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989.
    """
    shape = (count, *like.shape)
    if not orthogonal:
        return jax.random.rademacher(key, shape, like.dtype)
    n = like[0].size
    if count > n:
        raise ValueError(f"at most {n} probes of {n} dimensions can be orthogonal to each other, got {count}")
    wide = accumulator(like.dtype)
    frames = jnp.linalg.qr(jax.random.normal(key, (len(like), n, count), wide))[0]
    return (n**0.5 * jnp.moveaxis(frames, 2, 0)).astype(like.dtype).reshape(shape)
