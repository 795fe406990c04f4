"""Weights that are a function of their parameters."""

import abc
from collections.abc import Callable

from flax import nnx
from jaxtyping import Array, Float

Kernel = Float[Array, "*window inputs outputs"]


class Weight(nnx.Module, abc.ABC):
    """A kernel that is computed from parameters, as by `WeightNorm` and `SpectralNorm`.

    The layers of `deqflow.nn` compute theirs in `prepare`, so that a cell does it once per solve and not at every step.
    """

    @abc.abstractmethod
    def __call__(self) -> Kernel:
        """The kernel."""


Parametrise = Callable[[Kernel], Weight]
"""Makes the weight that starts as this kernel, or near it: `WeightNorm`, or `functools.partial(SpectralNorm, bound=0.9, rngs=rngs)`."""


def make_weight(kernel: Kernel, parametrise: Parametrise | None) -> nnx.Param | Weight:
    """`kernel` as a parameter of its own, or parametrised."""
    return nnx.Param(kernel) if parametrise is None else parametrise(kernel)


def value_of(weight: nnx.Param | Weight) -> Kernel:
    """The kernel that either stands for."""
    return weight() if isinstance(weight, Weight) else weight[...]
