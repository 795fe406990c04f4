"""RealNVP: a density model of affine couplings."""

import math
from typing import Annotated

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Real

from deqflow.flows import (
    ActNorm,
    Affine,
    AffineCoupling,
    Bijector,
    Chain,
    Dequantize,
    Flow,
    Logit,
    Permutation,
    ResidualMLP,
    StandardNormal,
    masks,
)
from deqflow.registry import FromRuntime, Range, check_ranges


class RealNVP(nnx.Module):
    """Density model of affine couplings: points and vectors, or small integer images with dequantisation and logit.

    `log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|`, with f a chain of
    `ActNorm → coupling → ... → coupling → ActNorm` on the flattened data. Couplings come in pairs, of which the second transforms the
    half that the first kept. The first pair parts images like a chess board, so that each half sees the neighbours of the other;
    every later pair parts the dimensions at random. Integer data (`levels` given) first become
    `logit(λ + (1 - 2λ) (x + u) / levels)` with uniform noise `u`; the log-likelihood is then a bound on that of the integers.

    Args:
      couplings: number of couplings; two transform every dimension once.
      width: features of the residual network in each coupling.
      depth: residual blocks of that network.
      dropout: probability with which a feature of that network is dropped in training.
      scale_bound: largest `|log scale|` of one coupling.
      initial_log_scale: log of the standard deviation to which the first ActNorm spreads the data.
      logit_lambda: λ, the margin of the logit; used for integer data only.
      condition_size: features of the condition, 0 for an unconditional density.
      input_shape: shape of one example; two dimensions in all, or more.
      levels: number of values that integer data take, `None` for real data.
      rngs: where the first parameters are drawn from.

    Raises:
      ValueError: if an argument is out of range, or the data have fewer than two dimensions.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> model = RealNVP(couplings=2, width=8, depth=1, input_shape=(2,), rngs=nnx.Rngs(0))
      >>> print(model.log_prob(jnp.zeros((3, 2))))       # starts as a standard normal distribution
      [-1.837877 -1.837877 -1.837877]
      >>> model.sample(jax.random.key(0), 5).shape
      (5, 2)

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP. ICLR 2017.
    """

    def __init__(
        self,
        *,
        couplings: Annotated[int, Range(ge=1)] = 8,
        width: Annotated[int, Range(ge=1)] = 128,
        depth: Annotated[int, Range(ge=0)] = 2,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        scale_bound: Annotated[float, Range(gt=0)] = 2.0,
        initial_log_scale: float = 0.0,
        logit_lambda: Annotated[float, Range(gt=0, lt=0.5)] = 1e-3,
        condition_size: Annotated[int, Range(ge=0)] = 0,
        input_shape: Annotated[tuple[int, ...], FromRuntime],
        levels: Annotated[int | None, FromRuntime] = None,
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        check_ranges(RealNVP.__init__, locals())
        size = math.prod(input_shape)
        if size < 2:
            raise ValueError(f"a coupling needs data of two dimensions or more, got examples of shape {input_shape}")
        self.input_shape = input_shape
        layers: list[Bijector] = []
        if levels is not None:
            layers += [Dequantize((size,), levels=levels), Affine((size,), scale=1 / levels), Logit((size,), margin=logit_lambda)]
        if len(input_shape) > 1:
            white = masks.checkerboard(input_shape)
            layers.append(Permutation(np.concatenate([np.flatnonzero(white), np.flatnonzero(~white)])))
        layers.append(ActNorm((size,), initial_log_scale=initial_log_scale))
        rng = np.random.default_rng(0)  # the same partitions for every seed of a run
        for index in range(couplings):
            if size > 2 and index > 0 and index % 2 == 0:
                layers.append(Permutation(rng.permutation(size)))
            mask = masks.half(size) if index % 2 == 0 else ~masks.half(size)
            conditioner = ResidualMLP(
                int(mask.sum()),
                2 * int((~mask).sum()),
                width=width,
                depth=depth,
                dropout=dropout,
                condition_size=condition_size,
                rngs=rngs,
            )
            layers.append(AffineCoupling(mask, conditioner, bound=scale_bound))
        layers.append(ActNorm((size,)))
        self.flow = Flow(StandardNormal((size,)), Chain(layers))

    def initialize(self, x: Real[Array, "batch *event"], key: Key[Array, ""], *, condition: Array | None = None) -> None:
        """Set scales and shifts from one batch of data, in place."""
        bijector = self.flow.bijector
        assert isinstance(bijector, Chain)
        bijector.initialize(self._flatten(x), condition=condition, key=key)

    def log_prob(
        self, x: Real[Array, "batch *event"], *, condition: Array | None = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, " batch"]:
        """The log-likelihood of each example in nats, in the units of the raw data.

        Args:
          x: `(batch, *input_shape)`; integers of `0 .. levels - 1` if the model has levels.
          condition: `(batch, condition_size)`.
          key: needed for integer data, whose noise it draws, and for dropout in training.

        Raises:
          ValueError: if a shape is wrong or a key is missing.
        """
        return self.flow.log_prob(self._flatten(x), condition=condition, key=key)

    def sample(self, key: Key[Array, ""], n: int, *, temperature: float = 1.0, condition: Array | None = None) -> Float[Array, "n *event"]:
        """Draw `n` examples `(n, *input_shape)` in the range of the raw data; integer data as whole numbers of floating type."""
        flat = self.flow.sample(key, n, temperature=temperature, condition=condition)
        return flat.reshape(n, *self.input_shape)

    def _flatten(self, x: jax.Array) -> jax.Array:
        if x.shape[1:] != self.input_shape:
            expected = ", ".join(["batch", *map(str, self.input_shape)])
            raise ValueError(f"RealNVP expected data of shape ({expected}), got {x.shape}")
        return x.reshape(x.shape[0], -1)
