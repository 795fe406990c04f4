"""Certificates of the equations inside a bijector."""

from typing import Any

from flax import nnx

from deqflow.flows.equation import Equation
from deqflow.flows.repeat import Repeat
from deqflow.nn import lipschitz_bound


def lipschitz_bounds(bijector: Any) -> list[float]:
    """The certified Lipschitz bound of every g in a bijector, from the data to the latent; all below 1, all is invertible.

    Args:
      bijector: of which the residual blocks and implicit flows are looked for at any depth, also inside a `Repeat`.

    Raises:
      TypeError: inside `jit`, where there are no numbers.

    Example:
      >>> from deqflow.flows import Chain, ImplicitFlow, Residual
      >>> from deqflow.nn import LipschitzMLP
      >>> rngs = nnx.Rngs(0)
      >>> g = [LipschitzMLP(2, width=8, depth=1, bound=0.9, rngs=rngs) for _ in range(3)]
      >>> bounds = lipschitz_bounds(Chain([Residual(g[0], (2,)), ImplicitFlow(g[1], g[2], (2,))]))
      >>> len(bounds), max(bounds) <= 0.9
      (3, True)
    """
    if isinstance(bijector, Equation):
        return [lipschitz_bound(g) for g in bijector.maps]
    if isinstance(bijector, Repeat):
        return [bound for block in bijector.blocks() for bound in lipschitz_bounds(block)]
    return [bound for _, child in nnx.iter_children(bijector) if isinstance(child, nnx.Pytree) for bound in lipschitz_bounds(child)]
