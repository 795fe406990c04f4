"""A deep equilibrium classifier of small images."""

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from deqflow.deq import DEQ, Cell, ConvCell, Training
from deqflow.implicit import Anderson, Gradient, Implicit, Solver
from deqflow.models.image_classifier import EquilibriumClassifier
from deqflow.models.stem import ImageStem, require_images
from deqflow.nn.conv import Images
from deqflow.registry import FromRuntime, Range, check_ranges

_SMALLEST = 3  # the side of the convolutions' kernels


class DEQClassifier(EquilibriumClassifier):
    """Deep equilibrium classifier of small images: one cell, solved to equilibrium.

        logits = readout(z),   z = f(z, stem(x))

    The stem is a chain of convolutions (`deqflow.models.stem.ImageStem`), the readout a linear map of the equilibrium's averages over the
    tiles of a grid.

    Args:
      width: channels of the state.
      groups: groups of the stem's normalisation; must divide `width`.
      cell: what is solved, a map of images with `width` channels: a class, or a function, to be called with `width` and `rngs`.
      stride: the equilibrium lives on a grid this many times coarser than the image.
      grid: the readout averages the equilibrium over `grid x grid` tiles.
      solver: how the equilibrium is found.
      gradient: how it is differentiated.
      eval_solver: how it is found in evaluation; the same if `None`.
      training: what is different in training, such as step budgets and penalties.
      input_shape: `(height, width, channels)` of an image.
      classes: number of classes.
      levels: integer images hold `0 .. levels - 1` and are divided by `levels - 1`; `None` for real images, taken as they are.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if the images are not `(height, width, channels)` or too small, or `classes` is missing.

    Example:
      >>> model = DEQClassifier(width=16, input_shape=(8, 8, 1), classes=10, levels=17, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 8, 8, 1), jnp.uint8)).shape
      (2, 10)

    Bai, Kolter and Koltun, "Deep equilibrium models", 2019; Bai, Koltun and Kolter, "Multiscale deep equilibrium models", 2020.
    """

    def __init__(
        self,
        *,
        width: Annotated[int, Range(ge=1)] = 32,
        groups: Annotated[int, Range(ge=1)] = 8,
        cell: Callable[..., Cell] = ConvCell,
        stride: Annotated[int, Range(ge=1)] = 1,
        grid: Annotated[int, Range(ge=1)] = 4,
        solver: Solver = Anderson(),
        gradient: Gradient = Implicit(),
        eval_solver: Solver | None = None,
        training: Training = Training(),
        input_shape: Annotated[tuple[int, ...], FromRuntime],
        classes: Annotated[int | None, FromRuntime],
        levels: Annotated[int | None, FromRuntime],
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(DEQClassifier.__init__, locals())
        classes = require_images("deq_classifier", input_shape, classes)
        smallest = max(_SMALLEST, grid) * stride
        if min(input_shape[:2]) < smallest:
            raise ValueError(
                f"deq_classifier with stride={stride} and grid={grid} takes images of at least {smallest} x {smallest} pixels, "
                f"got {input_shape[0]} x {input_shape[1]}"
            )
        self.grid = grid
        self.stem = ImageStem(width, groups=groups, stride=stride, input_shape=input_shape, levels=levels, rngs=rngs)
        self.deq = DEQ(cell(width=width, rngs=rngs), solver, gradient, eval_solver=eval_solver, training=training)
        self.linear = nnx.Linear(grid * grid * width, classes, rngs=rngs)

    def readout(self, z: Images) -> Float[Array, "batch classes"]:
        """Logits of an equilibrium."""
        rows, columns = (_tiles(side, self.grid) for side in z.shape[1:3])
        tiles = jnp.einsum("gh,kw,bhwc->bgkc", rows, columns, z)
        return self.linear(tiles.reshape(z.shape[0], -1))


def _tiles(side: int, grid: int) -> Float[np.ndarray, "grid side"]:
    """Row i averages the pixels of tile i; tiles overlap by a pixel where `grid` does not divide `side`."""
    edges = np.arange(grid + 1) * side / grid
    first, last = np.floor(edges[:-1, None]), np.ceil(edges[1:, None])
    inside = (np.arange(side) >= first) & (np.arange(side) < last)
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)
