"""Spectral normalisation by power iteration."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from deqflow.nn.conv import conv_same
from deqflow.nn.weight import Kernel, Weight
from deqflow.registry import Range, check_ranges

# The vector starts at random; training goes on from what these first steps find.
_INITIAL_STEPS = 20


class SpectralNorm(Weight):
    """Spectral normalisation: a linear map whose estimated largest singular value does not exceed a bound.

        w = W min(1, bound / σ),   σ = ‖W v‖₂,   v ← Wᵀ W v / ‖Wᵀ W v‖₂

    The unit vector `v` is a variable and no parameter. It changes in `refresh` alone, which the trainer calls once per training step, so
    that every solve and every derivative sees one and the same map. Power iteration estimates from below: for a certificate compute
    singular values.

    Args:
      kernel: the first weights: a matrix `(inputs, outputs)`, or those of a 3 x 3 or like convolution `(rows, columns, inputs, outputs)`.
      bound: the largest singular value that is let through.
      size: height and width of the images that a convolution is applied to, on which its norm depends.
      steps: power iterations in one `refresh`.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if a number is out of its range, or a convolution comes without `size`.

    Example:
      >>> weight = SpectralNorm(jnp.diag(jnp.array([4.0, 1.0, 0.5])), bound=2.0, rngs=nnx.Rngs(0))
      >>> print(jnp.diagonal(weight()).round(3))
      [2.   0.5  0.25]

    Miyato, Kataoka, Koyama and Yoshida, "Spectral normalization for generative adversarial networks", 2018; Gouk, Frank, Pfahringer and
    Cree, "Regularisation of neural networks by enforcing Lipschitz continuity", 2018, on convolutions.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        bound: Annotated[float, Range(gt=0)] = 1.0,
        size: tuple[int, int] | None = None,
        steps: Annotated[int, Range(ge=1)] = 1,
        rngs: nnx.Rngs,
    ) -> None:
        check_ranges(SpectralNorm.__init__, locals())
        if (size is None) != (kernel.ndim == 2):
            raise ValueError(
                "SpectralNorm of a convolution needs `size`, the height and width of its images, and that of a matrix has none; "
                f"got size={size} for a kernel of shape {kernel.shape}"
            )
        self.bound = bound
        self.steps = steps
        self.kernel = nnx.Param(kernel)
        self.vector = nnx.Variable(jax.random.normal(rngs.params(), (1, *(size or ()), kernel.shape[-2]), kernel.dtype))
        self._iterate(_INITIAL_STEPS)

    def __call__(self) -> Kernel:
        square = jnp.sum(self._apply(lax.stop_gradient(self.vector[...])) ** 2)
        exceeds = square > self.bound**2
        factor = jnp.where(exceeds, self.bound * lax.rsqrt(jnp.where(exceeds, square, 1)), 1)
        return self.kernel[...] * factor.astype(self.kernel.dtype)

    def refresh(self) -> None:
        """Take `steps` steps of power iteration."""
        self._iterate(self.steps)

    def _iterate(self, steps: int) -> None:
        vector = self.vector[...]
        for _ in range(steps):
            image, pull = jax.vjp(self._apply, vector)
            (vector,) = pull(image)
            vector = vector / jnp.maximum(jnp.linalg.norm(vector), jnp.finfo(vector.dtype).tiny)
        self.vector[...] = lax.stop_gradient(vector)

    def _apply(self, x: Float[Array, "1 *pixels inputs"]) -> Float[Array, "1 *pixels outputs"]:
        kernel = self.kernel[...].astype(x.dtype)  # which may be narrower in training
        return jnp.dot(x, kernel, precision="highest") if kernel.ndim == 2 else conv_same(x, kernel)


def refresh(model: nnx.Pytree) -> None:
    """Let every `SpectralNorm` in `model` follow its weights; to be called once per training step.

    A module that has a method `refresh` of its own takes care of what is inside it.

    Example:
      >>> from deqflow.deq import MLPCell
      >>> cell = MLPCell(4, parametrise="spectral", rngs=nnx.Rngs(0))
      >>> refresh(cell)
    """
    own = getattr(model, "refresh", None)
    if own is not None:
        own()
        return
    for _, child in nnx.iter_children(model):
        if isinstance(child, nnx.Pytree):  # modules and lists of them
            refresh(child)
