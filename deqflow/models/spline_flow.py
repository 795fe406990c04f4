"""Neural spline flow: a density model of rational-quadratic spline couplings."""

from typing import Annotated

import numpy as np
from flax import nnx

from deqflow.flows import ActNorm, Bijector, Chain, Flow, ResidualMLP, SplineCoupling, StandardNormal
from deqflow.models.flow_model import FlowModel, Mixing, chess_board, event_size, from_levels, in_pairs, whitening
from deqflow.registry import FromRuntime, Range, check_ranges


class SplineFlow(FlowModel):
    """Density model of spline couplings: points and vectors, or small integer images with dequantisation and logit.

    `log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|`, with f a chain `ActNorm → coupling → ... → coupling → ActNorm` on the flattened data.
    Couplings come in pairs, and integer data are treated, as in `RealNVP`.

    Args:
      couplings: number of couplings; two transform every dimension once.
      bins: pieces of a spline.
      bound: how far the splines reach, in standard deviations of the data.
      width: features of the residual network in each coupling.
      depth: residual blocks of that network.
      dropout: probability with which a feature of that network is dropped in training.
      logit_lambda: λ, the margin of the logit; used for integer data only.
      mixing: what stands between pairs of couplings: `permute` for random permutations, `linear` for trainable linear maps.
      whiten: let a trainable linear map take the correlations out of the data first, as the first batch shows them.
      condition_size: features of the condition, 0 for an unconditional density.
      input_shape: shape of one example; two dimensions in all, or more.
      levels: number of values that integer data take, `None` for real data.
      rngs: where the first parameters are drawn from.

    Raises:
      ValueError: if an argument is out of range, or the data have fewer than two dimensions.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> model = SplineFlow(couplings=2, width=8, depth=1, input_shape=(2,), rngs=nnx.Rngs(0))
      >>> print(model.log_prob(jnp.zeros((1, 2))).round(3))       # starts as a standard normal distribution
      [-1.838]

    Durkan, Bekasov, Murray, Papamakarios: Neural spline flows. NeurIPS 2019.
    """

    def __init__(
        self,
        *,
        couplings: Annotated[int, Range(ge=1)] = 4,
        bins: Annotated[int, Range(ge=2)] = 16,
        bound: Annotated[float, Range(gt=0)] = 3.0,
        width: Annotated[int, Range(ge=1)] = 64,
        depth: Annotated[int, Range(ge=0)] = 2,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        logit_lambda: Annotated[float, Range(gt=0, lt=0.5)] = 1e-3,
        mixing: Mixing = "permute",
        whiten: bool = False,
        condition_size: Annotated[int, Range(ge=0)] = 0,
        input_shape: Annotated[tuple[int, ...], FromRuntime],
        levels: Annotated[int | None, FromRuntime] = None,
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(SplineFlow.__init__, locals())
        size = event_size(input_shape, 2, "a coupling needs data of two dimensions or more")
        self.input_shape = input_shape

        def coupling(mask: np.ndarray) -> Bijector:
            conditioner = ResidualMLP(
                int(mask.sum()),
                (3 * bins - 1) * int((~mask).sum()),
                width=width,
                depth=depth,
                dropout=dropout,
                condition_size=condition_size,
                rngs=rngs,
            )
            return SplineCoupling(mask, conditioner, bins=bins, bound=bound)

        layers = [*from_levels((size,), levels, logit_lambda), *chess_board(input_shape), *whitening(size, whiten, rngs)]
        layers += [ActNorm((size,)), *in_pairs(size, couplings, coupling, mixing, rngs), ActNorm((size,))]
        self.flow = Flow(StandardNormal((size,)), Chain(layers))
