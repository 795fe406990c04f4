"""Upper bounds of Lipschitz constants, computed on the host and certain up to a rounding margin."""

import math
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from flax import nnx

from deqflow.nn.activations import Activation
from deqflow.nn.certificate import conv_spectral_norm, mixed_norm, spectral_norm
from deqflow.nn.conv import Conv
from deqflow.nn.linear import Linear
from deqflow.nn.mixed_norm import MixedNormLimit
from deqflow.nn.weight import value_of


@runtime_checkable
class Bounded(Protocol):
    """Something that knows an upper bound of its own Lipschitz constant."""

    def lipschitz_bound(self) -> float: ...


def lipschitz_bound(module: Any) -> float:
    """An upper bound of the Lipschitz constant of `module` with respect to its first argument, in Euclidean norms.

    It never is an estimate: a dense layer's is its largest singular value in float64, with a margin for the rounding of the weights in
    use, a convolution's an upper bound on images of every size, and what is not known is `inf`. Power iteration, which approaches a norm
    from below, certifies nothing.

    Args:
      module: a `Linear` layer, a `Conv`, an `Activation`, a sequence of such things, which are taken one after the other (the same
        layer twice counts twice; the product may run through other norms, see `MixedNormLimit`), or anything that has a method
        `lipschitz_bound`.

    Raises:
      TypeError: inside `jit`, where there are no numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> layer = Linear(2, 2, bias=False, rngs=nnx.Rngs(0))
      >>> layer.kernel[...] = jnp.diag(jnp.array([3.0, 1.0]))
      >>> f"{lipschitz_bound([layer, Activation('elu')]):.4f}", lipschitz_bound(lambda x: x)
      ('3.0000', inf)

    Szegedy et al., "Intriguing properties of neural networks", 2014, for the product of the layers' norms.
    """
    if isinstance(module, Bounded):
        return module.lipschitz_bound()
    if isinstance(module, Activation):
        return module.lipschitz
    if isinstance(module, Linear):
        return abs(module.gain) * spectral_norm(value_of(module.kernel))
    if isinstance(module, Conv):
        return abs(module.gain) * conv_spectral_norm(value_of(module.kernel))
    if isinstance(module, nnx.Sequential):
        return lipschitz_bound(tuple(module.layers))
    if isinstance(module, (list, tuple, nnx.List)):
        product = _product(lipschitz_bound(part) for part in module)
        return min(product, _through_other_norms(module)) if any(map(_is_mixed, module)) else product
    return math.inf


def _is_mixed(part: Any) -> bool:
    return isinstance(part, Linear) and isinstance(part.kernel, MixedNormLimit)


def _product(bounds: Iterable[float]) -> float:
    """The product, `inf` if one of them is, also beside a zero."""
    bounds = list(bounds)
    return math.inf if math.inf in bounds else math.prod(bounds)


def _through_other_norms(parts: Iterable[Any]) -> float:
    """The product in the norms that the weights name, `inf` if they do not meet or do not start and end in the Euclidean one."""
    bounds, norm = list[float](), "l2"
    for part in parts:
        if _is_mixed(part) and part.kernel.domain == norm:
            norm = part.kernel.codomain
            bounds.append(abs(part.gain) * mixed_norm(part.kernel(), part.kernel.domain, norm))
        elif norm == "l2":
            bounds.append(lipschitz_bound(part))
        elif isinstance(part, Activation):
            # The several outputs of one input move by no more than 1 together in l2, so each by no more, and their sum by its root.
            bounds.append(part.lipschitz * (math.sqrt(part.widening) if norm == "l1" else 1))
        else:
            return math.inf
    return _product(bounds) if norm == "l2" else math.inf
