"""Residual and implicit flows: density models of maps that are inverted by solving an equation."""

import functools
from collections.abc import Callable
from typing import Annotated

from flax import nnx

from deqflow.flows import ActNorm, Bijector, Chain, Exact, Flow, ImplicitFlow, LogDet, Repeat, Residual, StandardNormal
from deqflow.implicit import Anderson, BiCGStab, Gradient, Implicit, Solver
from deqflow.models.flow_model import FlowModel, event_size, from_levels, whitening
from deqflow.nn import LipschitzMLP
from deqflow.nn.activations import Name
from deqflow.registry import FromRuntime, Range, check_ranges


class ResidualFlow(FlowModel):
    """Density model of residual blocks: points and vectors, or small integer images with dequantisation and logit.

    `log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|`, with f a chain `ActNorm → block → ... → block → ActNorm` on the flattened data, each
    block `x + g(x)` with a perceptron g whose Lipschitz constant is bounded by construction. Since a block moves no point by more than a
    part of its distance from another one, the first ActNorm should spread the data to where the structure is coarse. Integer data
    (`levels` given) first become `logit(λ + (1 - 2λ) (x + u) / levels)` with uniform noise u.

    Args:
      blocks: number of residual blocks.
      width: features of the hidden layers of g.
      depth: number of them.
      bound: of the Lipschitz constant of g, below 1.
      activation: of g.
      log_det: how log-determinants are computed in training.
      eval_log_det: how in evaluation; `None` for the same.
      initial_log_scale: log of the standard deviation to which the first ActNorm spreads the data.
      logit_lambda: λ, the margin of the logit; used for integer data only.
      whiten: let a trainable linear map take the correlations out of the data first, as the first batch shows them.
      condition_size: features of the condition, 0 for an unconditional density.
      input_shape: shape of one example.
      levels: number of values that integer data take, `None` for real data.
      rngs: where the first parameters are drawn from.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> model = ResidualFlow(blocks=2, width=8, depth=1, input_shape=(2,), rngs=nnx.Rngs(0))
      >>> model.log_prob(jnp.zeros((3, 2))).shape, model.sample(jax.random.key(0), 5).shape
      ((3,), (5, 2))

    Chen, Behrmann, Duvenaud and Jacobsen, "Residual flows for invertible generative modeling", 2019.
    """

    def __init__(
        self,
        *,
        blocks: Annotated[int, Range(ge=1)] = 8,
        width: Annotated[int, Range(ge=1)] = 64,
        depth: Annotated[int, Range(ge=1)] = 3,
        bound: Annotated[float, Range(gt=0, lt=1)] = 0.98,
        activation: Name = "sincos",
        log_det: LogDet = Exact(),
        eval_log_det: LogDet | None = None,
        initial_log_scale: float = 0.0,
        logit_lambda: Annotated[float, Range(gt=0, lt=0.5)] = 1e-3,
        whiten: bool = False,
        condition_size: Annotated[int, Range(ge=0)] = 0,
        input_shape: Annotated[tuple[int, ...], FromRuntime],
        levels: Annotated[int | None, FromRuntime] = None,
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(ResidualFlow.__init__, locals())

        def block(size: int, rngs: nnx.Rngs) -> Bijector:
            g = LipschitzMLP(size, width=width, depth=depth, bound=bound, activation=activation, condition_size=condition_size, rngs=rngs)
            return Residual(g, (size,), log_det=log_det, eval_log_det=eval_log_det)

        self.input_shape = input_shape
        self.flow = _flow(input_shape, levels, logit_lambda, whiten, initial_log_scale, blocks, block, rngs)


class ImplicitNormalizingFlow(FlowModel):
    """Density model of implicit blocks, `z + g_z(z) = x + g_x(x)`; otherwise as `ResidualFlow`.

    A block has twice the parameters of a residual one and is solved for in both directions.

    Args:
      blocks: number of implicit blocks.
      width: features of the hidden layers of each g.
      depth: number of them.
      bound: of the Lipschitz constant of each g, below 1.
      activation: of each g.
      log_det: how log-determinants are computed in training.
      eval_log_det: how in evaluation; `None` for the same.
      solver: of the equations in training; in evaluation they are solved to a few roundings.
      gradient: how they are differentiated.
      initial_log_scale: log of the standard deviation to which the first ActNorm spreads the data.
      logit_lambda: λ, the margin of the logit; used for integer data only.
      whiten: let a trainable linear map take the correlations out of the data first, as the first batch shows them.
      condition_size: features of the condition, 0 for an unconditional density.
      input_shape: shape of one example.
      levels: number of values that integer data take, `None` for real data.
      rngs: where the first parameters are drawn from.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> model = ImplicitNormalizingFlow(blocks=1, width=8, depth=1, input_shape=(2,), rngs=nnx.Rngs(0))
      >>> model.log_prob(jnp.zeros((3, 2))).shape, model.sample(jax.random.key(0), 5).shape
      ((3,), (5, 2))

    Lu, Chen, Li, Wang and Zhu, "Implicit normalizing flows", 2021.
    """

    def __init__(
        self,
        *,
        blocks: Annotated[int, Range(ge=1)] = 4,
        width: Annotated[int, Range(ge=1)] = 64,
        depth: Annotated[int, Range(ge=1)] = 3,
        bound: Annotated[float, Range(gt=0, lt=1)] = 0.98,
        activation: Name = "sincos",
        log_det: LogDet = Exact(),
        eval_log_det: LogDet | None = None,
        solver: Solver = Anderson(rtol=1e-5, max_steps=200),
        gradient: Gradient = Implicit(linear=BiCGStab(rtol=1e-5)),
        initial_log_scale: float = 0.0,
        logit_lambda: Annotated[float, Range(gt=0, lt=0.5)] = 1e-3,
        whiten: bool = False,
        condition_size: Annotated[int, Range(ge=0)] = 0,
        input_shape: Annotated[tuple[int, ...], FromRuntime],
        levels: Annotated[int | None, FromRuntime] = None,
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(ImplicitNormalizingFlow.__init__, locals())

        def g(size: int, rngs: nnx.Rngs) -> LipschitzMLP:
            return LipschitzMLP(
                size, width=width, depth=depth, bound=bound, activation=activation, condition_size=condition_size, rngs=rngs
            )

        def block(size: int, rngs: nnx.Rngs) -> Bijector:
            options = {"log_det": log_det, "eval_log_det": eval_log_det, "solver": solver, "gradient": gradient}
            return ImplicitFlow(g(size, rngs), g(size, rngs), (size,), **options)

        self.input_shape = input_shape
        self.flow = _flow(input_shape, levels, logit_lambda, whiten, initial_log_scale, blocks, block, rngs)


def _flow(
    input_shape: tuple[int, ...],
    levels: int | None,
    margin: float,
    whiten: bool,
    initial_log_scale: float,
    blocks: int,
    block: Callable[[int, nnx.Rngs], Bijector],
    rngs: nnx.Rngs,
) -> Flow:
    size = event_size(input_shape, 1, "a density needs data of one dimension or more")
    layers = [*from_levels((size,), levels, margin), *whitening(size, whiten, rngs)]
    layers += [ActNorm((size,), initial_log_scale=initial_log_scale), Repeat(functools.partial(block, size), blocks, rngs=rngs)]
    return Flow(StandardNormal((size,)), Chain([*layers, ActNorm((size,))]))
