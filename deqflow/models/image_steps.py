"""The steps of an image flow: what it repeats at every scale."""

import abc
import dataclasses
from typing import Annotated

import numpy as np
from flax import nnx

from deqflow.flows import (
    ActNorm,
    AffineCoupling,
    ArnoldiQuadrature,
    Bijector,
    Chain,
    ImplicitFlow,
    InvertibleLinear,
    LogDet,
    Residual,
    ResidualCNN,
    masks,
)
from deqflow.implicit import Anderson, BiCGStab, Gradient, Implicit, Solver
from deqflow.nn import LipschitzConvNet
from deqflow.nn.activations import Name
from deqflow.nn.lipschitz_conv_net import Parametrisation
from deqflow.registry import Range, check_ranges

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageStep(abc.ABC):
    """A step of a flow of images, which keeps their shape."""

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    @abc.abstractmethod
    def bijector(self, shape: Shape, rngs: nnx.Rngs) -> Bijector:
        """One step on images `(rows, columns, channels)` with an even number of channels, its parameters drawn from `rngs`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CouplingStep(ImageStep):
    """A step of affine couplings whose conditioners are small convolutional networks.

    Attributes:
      width: channels of the conditioner.
      depth: its residual blocks.
      dropout: probability with which a number in it is dropped in training.
      scale_bound: largest `|log scale|` of one coupling.
    """

    width: Annotated[int, Range(ge=1)] = 64
    depth: Annotated[int, Range(ge=0)] = 1
    dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0
    scale_bound: Annotated[float, Range(gt=0)] = 2.0

    def coupling(self, mask: np.ndarray, rngs: nnx.Rngs) -> AffineCoupling:
        """The coupling that keeps what `mask` (of an image's shape) says."""
        channels = mask.shape[-1]
        kept = int(mask[0, 0].sum()) if (mask == mask[0, 0]).all() else None  # see Coupling on what a conditioner takes and returns
        taken, moved = (channels, channels) if kept is None else (kept, channels - kept)
        conditioner = ResidualCNN(taken, 2 * moved, width=self.width, depth=self.depth, dropout=self.dropout, rngs=rngs)
        return AffineCoupling(mask, conditioner, bound=self.scale_bound)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlowStep(CouplingStep):
    """A step of Glow: `ActNorm → 1 x 1 convolution → affine coupling of the channels`.

    Args:
      width: channels of the coupling's convolutional network.
      depth: residual blocks of that network.
      dropout: probability with which a number in that network is dropped in training.
      scale_bound: largest `|log scale|` of the coupling.

    Example:
      >>> import jax.numpy as jnp
      >>> step = GlowStep(width=8).bijector((4, 4, 4), nnx.Rngs(0))
      >>> step.forward_and_log_det(jnp.ones((2, 4, 4, 4))).value.shape
      (2, 4, 4, 4)

    Kingma and Dhariwal: Glow: generative flow with invertible 1x1 convolutions. NeurIPS 2018.
    """

    def bijector(self, shape: Shape, rngs: nnx.Rngs) -> Bijector:
        mask = masks.channels(shape).reshape(shape)
        return Chain([ActNorm(shape), InvertibleLinear(shape, rngs=rngs), self.coupling(mask, rngs)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealNVPStep(CouplingStep):
    """A step of RealNVP: ActNorm and four affine couplings, two with the masks of a chess board and two with halves of the channels.

    Each of a pair transforms what the other keeps, so that one step transforms every number twice: as its neighbours say, then as the other
    channels say.

    Args:
      width: channels of each coupling's convolutional network.
      depth: residual blocks of that network.
      dropout: probability with which a number in that network is dropped in training.
      scale_bound: largest `|log scale|` of one coupling.

    Example:
      >>> import jax.numpy as jnp
      >>> step = RealNVPStep(width=8).bijector((4, 4, 4), nnx.Rngs(0))
      >>> step.forward_and_log_det(jnp.ones((2, 4, 4, 4))).value.shape
      (2, 4, 4, 4)

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP. ICLR 2017.
    """

    def bijector(self, shape: Shape, rngs: nnx.Rngs) -> Bijector:
        board, channels = (mask(shape).reshape(shape) for mask in (masks.checkerboard, masks.channels))
        return Chain([ActNorm(shape), *(self.coupling(mask, rngs) for mask in (board, ~board, channels, ~channels))])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LipschitzStep(ImageStep):
    """A step of ActNorm and a block that is invertible because the Lipschitz constants of its networks are below 1.

    Attributes:
      width: channels between the convolutions of each network, before the activation.
      bound: of the Lipschitz constant of each network, below 1.
      activation: of each network.
      parametrise: how kernels are bounded: `norm_limit` for the closer bound, `almost_orthogonal` for the cheaper one.
      log_det: how log-determinants are computed in training.
      eval_log_det: how in evaluation; `None` for the same.
      initial_log_scale: log of the standard deviation to which ActNorm spreads the images at first.
    """

    width: Annotated[int, Range(ge=1)] = 32
    bound: Annotated[float, Range(gt=0, lt=1)] = 0.98
    activation: Name = "sincos"
    parametrise: Parametrisation = "norm_limit"
    log_det: LogDet = ArnoldiQuadrature(steps=4)
    eval_log_det: LogDet | None = None
    initial_log_scale: float = 0.0

    @abc.abstractmethod
    def block(self, shape: Shape, rngs: nnx.Rngs) -> Bijector:
        """What follows ActNorm."""

    def bijector(self, shape: Shape, rngs: nnx.Rngs) -> Bijector:
        return Chain([ActNorm(shape, initial_log_scale=self.initial_log_scale), self.block(shape, rngs)])

    def network(self, shape: Shape, rngs: nnx.Rngs) -> LipschitzConvNet:
        """The g of the block."""
        return LipschitzConvNet(
            shape[-1], width=self.width, bound=self.bound, activation=self.activation, parametrise=self.parametrise, rngs=rngs
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualStep(LipschitzStep):
    """A step of a residual flow: `ActNorm → x + g(x)`, with g three convolutions whose Lipschitz constant is bounded.

    Args:
      width: channels between the convolutions of g, before the activation.
      bound: of the Lipschitz constant of g, below 1.
      activation: of g.
      parametrise: how kernels are bounded: `norm_limit` for the closer bound, `almost_orthogonal` for the cheaper one.
      log_det: how log-determinants are computed in training.
      eval_log_det: how in evaluation; `None` for the same.
      initial_log_scale: log of the standard deviation to which ActNorm spreads the images at first.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> step = ResidualStep(width=8).bijector((4, 4, 4), nnx.Rngs(0))
      >>> step.forward_and_log_det(jnp.ones((2, 4, 4, 4)), key=jax.random.key(0)).value.shape
      (2, 4, 4, 4)

    Chen, Behrmann, Duvenaud and Jacobsen, "Residual flows for invertible generative modeling", 2019.
    """

    def block(self, shape: Shape, rngs: nnx.Rngs) -> Bijector:
        return Residual(self.network(shape, rngs), shape, log_det=self.log_det, eval_log_det=self.eval_log_det)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitStep(LipschitzStep):
    """A step of an implicit flow: `ActNorm → z + g_z(z) = x + g_x(x)`, with two networks like that of `ResidualStep`.

    Args:
      width: channels between the convolutions of each g, before the activation.
      bound: of the Lipschitz constant of each g, below 1.
      activation: of each g.
      parametrise: how kernels are bounded: `norm_limit` for the closer bound, `almost_orthogonal` for the cheaper one.
      log_det: how log-determinants are computed in training.
      eval_log_det: how in evaluation; `None` for the same.
      initial_log_scale: log of the standard deviation to which ActNorm spreads the images at first.
      solver: of the equations in training; in evaluation they are solved to a few roundings.
      gradient: how they are differentiated.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> step = ImplicitStep(width=8).bijector((4, 4, 4), nnx.Rngs(0))
      >>> step.forward_and_log_det(jnp.ones((2, 4, 4, 4)), key=jax.random.key(0)).value.shape
      (2, 4, 4, 4)

    Lu, Chen, Li, Wang and Zhu, "Implicit normalizing flows", 2021.
    """

    solver: Solver = Anderson(rtol=1e-5, max_steps=200)
    gradient: Gradient = Implicit(linear=BiCGStab(rtol=1e-5))

    def block(self, shape: Shape, rngs: nnx.Rngs) -> Bijector:
        g_x, g_z = (self.network(shape, rngs) for _ in range(2))
        estimators = {"log_det": self.log_det, "eval_log_det": self.eval_log_det}
        return ImplicitFlow(g_x, g_z, shape, solver=self.solver, gradient=self.gradient, **estimators)
