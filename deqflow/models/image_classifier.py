"""What the classifiers of images that solve an equation share: from raw images to an equilibrium, and from there to logits."""

import abc
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int, Key, Num

from deqflow.deq import DEQ
from deqflow.implicit import Solution
from deqflow.models.stem import ImageStem


class EquilibriumClassifier(nnx.Module, abc.ABC):
    """A classifier whose logits are read off an equilibrium.

        logits = readout(z),   z = f(z, stem(x))

    Attributes:
      stem: makes feature maps of raw images.
      deq: solves for the equilibrium that belongs to them.
    """

    stem: ImageStem
    deq: DEQ

    def __call__(
        self, x: Num[Array, "batch height width channels"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "batch *pixels classes"]:
        """Logits of raw images."""
        return self.readout(self.solve(x, key=key).value)

    def solve(
        self,
        x: Num[Array, "batch height width channels"],
        *,
        key: Key[Array, ""] | None = None,
        budget: Int[Array, ""] | int | None = None,
        trace: bool = False,
        states: tuple[int, ...] = (),
    ) -> Solution[Any]:
        """The equilibrium of raw images, with per-sample statistics; `model(x) == model.readout(model.solve(x).value)`.

        Args:
          x: images as the data gives them.
          key: randomness for the cell.
          budget: at most this many solver steps; may be traced.
          trace: whether `stats.trace` shall hold the relative residual after every step.
          states: numbers of steps after which to look at the solve on its way.
        """
        return self.deq.solve(self.stem(x), key=key, budget=budget, trace=trace, states=states)

    @abc.abstractmethod
    def readout(self, z: Any) -> Float[Array, "batch *pixels classes"]:
        """Logits of an equilibrium: of every image, or of every pixel."""
