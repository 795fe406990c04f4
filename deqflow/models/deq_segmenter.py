"""A deep equilibrium model that classifies every pixel."""

from collections.abc import Callable
from typing import Annotated

from flax import nnx
from jaxtyping import Array, Float

from deqflow.deq import DEQ, Cell, ConvCell, Training
from deqflow.implicit import Anderson, Gradient, Implicit, Solver
from deqflow.models.image_classifier import EquilibriumClassifier
from deqflow.models.stem import ImageStem, require_images
from deqflow.nn.conv import Images
from deqflow.registry import FromRuntime, Range, check_ranges


class DEQSegmenter(EquilibriumClassifier):
    """Deep equilibrium model of images that gives every pixel a class: one cell, solved to equilibrium on the grid of the pixels.

        logits[i, j] = A z[i, j] + b,   z = f(z, stem(x))

    The readout looks at one pixel alone: what a pixel must know of distant ones the solve has to bring to it. Nothing depends on the
    size of the images, so that a trained model also takes larger ones, for which it may need more solver steps.

    Args:
      width: channels of the state.
      groups: groups of the stem's normalisation; must divide `width`.
      cell: what is solved, a map of images with `width` channels: a class, or a function, to be called with `width` and `rngs`.
      solver: how the equilibrium is found.
      gradient: how it is differentiated.
      eval_solver: how it is found in evaluation; the same if `None`.
      training: what is different in training, such as step budgets and penalties.
      input_shape: `(height, width, channels)` of an image.
      classes: number of classes of a pixel.
      levels: integer images hold `0 .. levels - 1` and are divided by `levels - 1`; `None` for real images, taken as they are.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if the images are not `(height, width, channels)`, or `classes` is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> model = DEQSegmenter(width=16, input_shape=(11, 11, 3), classes=2, levels=2, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 11, 11, 3), jnp.uint8)).shape, model(jnp.zeros((1, 19, 19, 3), jnp.uint8)).shape
      ((2, 11, 11, 2), (1, 19, 19, 2))

    Bansal, Schwarzschild, Borgnia et al., "End-to-end algorithm synthesis with recurrent networks: logical extrapolation without
    overthinking", 2022; Anil, Pokle, Liang et al., "Path independent equilibrium models can better exploit test-time computation", 2022.
    """

    def __init__(
        self,
        *,
        width: Annotated[int, Range(ge=1)] = 32,
        groups: Annotated[int, Range(ge=1)] = 8,
        cell: Callable[..., Cell] = ConvCell,
        solver: Solver = Anderson(),
        gradient: Gradient = Implicit(),
        eval_solver: Solver | None = None,
        training: Training = Training(),
        input_shape: Annotated[tuple[int, ...], FromRuntime],
        classes: Annotated[int | None, FromRuntime],
        levels: Annotated[int | None, FromRuntime],
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(DEQSegmenter.__init__, locals())
        classes = require_images("deq_segmenter", input_shape, classes)
        self.stem = ImageStem(width, groups=groups, stride=1, input_shape=input_shape, levels=levels, rngs=rngs)
        self.deq = DEQ(cell(width=width, rngs=rngs), solver, gradient, eval_solver=eval_solver, training=training)
        self.linear = nnx.Linear(width, classes, rngs=rngs)

    def readout(self, z: Images) -> Float[Array, "batch height width classes"]:
        """Logits of the pixels of an equilibrium."""
        return self.linear(z)
