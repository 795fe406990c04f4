"""Upper bounds of Lipschitz constants, computed on the host and certain up to a rounding margin."""

import math
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from deqflow.nn.activations import Activation
from deqflow.nn.linear import Linear
from deqflow.nn.weight import value_of


@runtime_checkable
class Bounded(Protocol):
    """Something that knows an upper bound of its own Lipschitz constant."""

    def lipschitz_bound(self) -> float: ...


def lipschitz_bound(module: Any) -> float:
    """An upper bound of the Lipschitz constant of `module` with respect to its first argument, in Euclidean norms.

    It never is an estimate: a dense layer's is its largest singular value in float64, with a margin for the rounding of the weights in
    use, and what is not known is `inf`. Power iteration, which approaches a norm from below, certifies nothing.

    Args:
      module: a `Linear` layer, an `Activation`, a sequence of such things, which are taken one after the other, or anything that has
        a method `lipschitz_bound`.

    Raises:
      TypeError: inside `jit`, where there are no numbers.

    Example:
      >>> from flax import nnx
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
    if isinstance(module, (list, tuple)):
        return math.prod(lipschitz_bound(part) for part in module)
    return math.inf


def spectral_norm(matrix: Any) -> float:
    """The largest singular value of a matrix in float64, and what rounding the entries to the type they come in may add to it."""
    if isinstance(matrix, Tracer):
        raise TypeError("a Lipschitz bound is computed on the host, from numbers: call it outside of jit")
    values = np.asarray(matrix)
    margin = 4 * float(jnp.finfo(values.dtype).eps)
    norm = np.linalg.norm(values.astype(np.float64), 2) if np.isfinite(values).all() else math.inf
    return float(norm * (1 + margin))
