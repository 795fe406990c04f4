"""A multiscale deep equilibrium classifier of images."""

import itertools
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deqflow.deq import DEQ, MultiscaleCell, Training
from deqflow.deq.multiscale_cell import Scales
from deqflow.implicit import Anderson, Gradient, Implicit, Solver
from deqflow.models.image_classifier import EquilibriumClassifier
from deqflow.models.stem import ImageStem, require_images
from deqflow.nn import Resample
from deqflow.registry import FromRuntime, Range, check_ranges


class MDEQClassifier(EquilibriumClassifier):
    """Multiscale deep equilibrium classifier of images: all resolutions in one equilibrium.

        logits = readout(z),   z = f(z, stem(x))

    with the cell f of `deqflow.deq.MultiscaleCell`. The readout gathers the scales from fine to coarse,
    `h_k = z_k + relu(D_k h_{k-1})` with convolutions D of stride 2, and maps the mean over all pixels of the last.

    Args:
      widths: channels of each scale, the finest first.
      groups: groups of the normalisations; must divide every width.
      gain: strength of the feedback in the cell; more of it makes deeper equilibria that are harder to find.
      dropout: rate of the variational dropout in the cell.
      weight_norm: whether the cell's 3 x 3 convolutions are weight-normalised.
      stride: the finest scale is this many times coarser than the image.
      solver: how the equilibrium is found.
      gradient: how it is differentiated.
      eval_solver: how it is found in evaluation; the same if `None`.
      training: what is different in training, such as step budgets and penalties.
      input_shape: `(height, width, channels)` of an image.
      classes: number of classes.
      levels: integer images hold `0 .. levels - 1` and are divided by `levels - 1`; `None` for real images, taken as they are.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if the images are not `(height, width, channels)`, or their sides cannot be halved as often as there are scales;
        if `classes` is missing.

    Example:
      >>> model = MDEQClassifier(widths=(8, 16), groups=4, input_shape=(8, 8, 1), classes=10, levels=17, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 8, 8, 1), jnp.uint8)).shape
      (2, 10)

    Bai, Koltun and Kolter, "Multiscale deep equilibrium models", 2020.
    """

    def __init__(
        self,
        *,
        widths: tuple[Annotated[int, Range(ge=1)], ...] = (32, 64, 128),
        groups: Annotated[int, Range(ge=1)] = 8,
        gain: Annotated[float, Range(gt=0)] = 0.25,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        weight_norm: bool = False,
        stride: Annotated[int, Range(ge=1)] = 1,
        solver: Solver = Anderson(),
        gradient: Gradient = Implicit(),
        eval_solver: Solver | None = None,
        training: Training = Training(),
        input_shape: Annotated[tuple[int, ...], FromRuntime],
        classes: Annotated[int | None, FromRuntime],
        levels: Annotated[int | None, FromRuntime],
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(MDEQClassifier.__init__, locals())
        classes = require_images("mdeq_classifier", input_shape, classes)
        cell = MultiscaleCell(widths, groups=groups, gain=gain, dropout=dropout, weight_norm=weight_norm, rngs=rngs)
        self.stem = ImageStem(widths[0], groups=groups, stride=stride, input_shape=input_shape, levels=levels, rngs=rngs)
        # Whether the sides can be halved is known here, and told before anything is trained.
        jax.eval_shape(lambda x: cell.initial(self.stem(x)), jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
        self.deq = DEQ(cell, solver, gradient, eval_solver=eval_solver, training=training)
        self.downs = nnx.List([Resample(a, b, octaves=1, groups=groups, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.linear = nnx.Linear(widths[-1], classes, rngs=rngs)

    def readout(self, z: Scales) -> Float[Array, "batch classes"]:
        """Logits of an equilibrium."""
        h = z[0]
        for part, down in zip(z[1:], self.downs, strict=True):
            h = part + jax.nn.relu(down(h))
        return self.linear(h.mean(axis=(1, 2)))
