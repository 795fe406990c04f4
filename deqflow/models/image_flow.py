"""Image flows: density models of images at several scales."""

import functools
from typing import Annotated

from flax import nnx

from deqflow.flows import ActNorm, Bijector, Chain, Flow, Multiscale, Product, Repeat, Squeeze, StandardNormal
from deqflow.models.flow_model import FlowModel, from_levels
from deqflow.models.image_steps import GlowStep, ImageStep
from deqflow.registry import FromRuntime, Range, check_ranges


class ImageFlow(FlowModel):
    """Density model of images at several scales: Glow, RealNVP, a residual or an implicit flow, as its steps are.

    `log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|`, where f takes an image through scales of

        squeeze → step → ... → step → ActNorm → half the channels leave as latents

    each on half the rows and columns of the one before; all that is left leaves after the last. The steps of a scale are compiled once.
    Integer data (`levels` given) first become `logit(λ + (1 - 2λ) (x + u) / levels)` with uniform noise u; the log-likelihood is then a
    bound on that of the integers, in their own units.

    Args:
      scales: how many times rows and columns are halved.
      steps: number of steps at each scale.
      step: what a step is.
      logit_lambda: λ, the margin of the logit; used for integer data only. The smaller it is, the wider is the noise of black and
        white pixels spread.
      input_shape: shape of one image, `(rows, columns, channels)`.
      levels: number of values that integer data take, `None` for real data.
      rngs: where the first parameters are drawn from.

    Raises:
      ValueError: if an argument is out of range, or the data are no images whose sides can be halved as often as there are scales.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> model = ImageFlow(scales=2, steps=2, step=GlowStep(width=8), input_shape=(8, 8, 1), levels=17, rngs=nnx.Rngs(0))
      >>> model.log_prob(jnp.zeros((3, 8, 8, 1)), key=jax.random.key(0)).shape, model.sample(jax.random.key(0), 5).shape
      ((3,), (5, 8, 8, 1))

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP. ICLR 2017; Kingma and Dhariwal: Glow: generative flow with invertible
    1x1 convolutions. NeurIPS 2018.
    """

    def __init__(
        self,
        *,
        scales: Annotated[int, Range(ge=1)] = 2,
        steps: Annotated[int, Range(ge=1)] = 8,
        step: ImageStep = GlowStep(),
        logit_lambda: Annotated[float, Range(gt=0, lt=0.5)] = 1e-3,
        input_shape: Annotated[tuple[int, ...], FromRuntime],
        levels: Annotated[int | None, FromRuntime] = None,
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(ImageFlow.__init__, locals())
        if len(input_shape) != 3:
            raise ValueError(f"an image flow takes images (rows, columns, channels), got examples of shape {input_shape}")
        rows, columns, channels = input_shape
        if rows % 2**scales or columns % 2**scales:
            raise ValueError(
                f"scales={scales} halves rows and columns {scales} times, but {rows} x {columns} pixels are not multiples of {2**scales}; "
                "use fewer scales, or pad or crop the images"
            )
        self.input_shape = input_shape

        def level(shape: tuple[int, ...]) -> Bijector:
            squeeze = Squeeze(shape)
            shape = squeeze.latent_shape
            return Chain([squeeze, Repeat(functools.partial(step.bijector, shape), steps, rngs=rngs), ActNorm(shape)])

        # Squeezing makes four channels of one, of which two go on.
        sizes = [(rows >> index, columns >> index, channels << index) for index in range(scales)]
        multiscale = Multiscale([level(size) for size in sizes])
        base = Product([StandardNormal(shape) for shape in multiscale.latent_shape])
        self.flow = Flow(base, Chain([*from_levels(input_shape, levels, logit_lambda), multiscale]))
