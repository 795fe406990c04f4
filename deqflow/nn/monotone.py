"""Linear maps W for which I - W is strongly monotone, whatever their parameters are."""

import abc
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.scipy.linalg import lu_factor, lu_solve
from jaxtyping import Array, Float

from deqflow.nn.conv import Images, Kernel, conv_same, transposed
from deqflow.nn.norm_bound import conv_norm_bound, norm_bound
from deqflow.registry import Range

Map = Callable[[Array], Array]
Weights = Float[Array, "*offsets width width"]


class MonotoneOperator(nnx.Module, abc.ABC):
    """A linear map W that falls short of the identity by at least m.

        W = (1 - m) I - AᵀA + S,   S = skew (B - Bᵀ),   so that   zᵀ(I - W) z = m ‖z‖² + ‖A z‖² >= m ‖z‖²

    whatever A and B are, since `zᵀS z = 0`. Every equation `z = relu(W z + b)` then has exactly one solution.

    Attributes:
      width: features, or channels, of z.
      m: the strong monotonicity of `I - W`.
      skew: a constant factor of the skew part.
      A: parameters of the symmetric part.
      B: parameters of the skew part.
    """

    def __init__(self, width: int, m: float, skew: float, A: Array, B: Array) -> None:
        if not 0 < m < float("inf"):
            raise ValueError(f"m must be positive and finite, got {m}: it is what makes the equilibrium unique")
        self.width = width
        self.m = m
        self.skew = skew
        self.A = nnx.Param(A)
        self.B = nnx.Param(B)

    def __call__(self, z: Array) -> Array:
        """`W z`, for every sample."""
        return self.apply(self.weight(), z)

    def weight(self) -> Weights:
        """W itself, formed from A and B: once per solve rather than once per product."""
        return self._assemble(self.A[...], self.B[...])

    def norms(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Upper bounds of the norms of `AᵀA` and S."""
        A, B = (_wide(p[...]) for p in (self.A, self.B))
        return self._norm_bound(self._gram(A)), self._norm_bound(self._skew_part(B))

    def monotonicity(self) -> float:
        """A lower bound of the smallest eigenvalue of the symmetric part of `I - W`, for W as it is computed.

        It is m less the rounding of `weight()`, which is found by computing W again in float64: a perturbation moves no eigenvalue by
        more than its norm, and that is at most the sum of the Frobenius norms of its blocks.

        Example:
          >>> print(f"{MonotoneDense(8, m=0.5, rngs=nnx.Rngs(0)).monotonicity():.4f}")
          0.5000
        """
        used = np.asarray(self.weight(), np.float64)
        with jax.enable_x64(True):
            exact = np.asarray(self._assemble(*(jnp.asarray(np.asarray(p[...]), jnp.float64) for p in (self.A, self.B))))
        # The second term is for what float64 rounds away in its turn.
        size = [np.linalg.norm(weight, axis=(-2, -1)).sum() for weight in (used - exact, exact)]
        return float(self.m - size[0] - 1e-12 * size[1])

    @abc.abstractmethod
    def apply(self, weight: Weights, z: Array) -> Array:
        """`W z` with W from `weight()`."""

    @abc.abstractmethod
    def resolvent(self, weight: Weights, alpha: float | Float[Array, ""]) -> Map | None:
        """The map `(I + alpha (I - W))⁻¹`, factored here, once per solve; `None` where only an iteration can apply it."""

    def _assemble(self, A: Array, B: Array) -> Weights:
        rest = self._skew_part(B) - self._gram(A)
        # The identity is a block at the centre: of kernels, the offset zero.
        centre = tuple(side // 2 for side in rest.shape[:-2])
        return rest.at[centre].add((1 - self.m) * jnp.eye(self.width, dtype=rest.dtype))

    def _skew_part(self, B: Array) -> Weights:
        return self.skew * (B - self._transpose(B))

    @abc.abstractmethod
    def _gram(self, A: Array) -> Weights: ...

    @abc.abstractmethod
    def _transpose(self, B: Array) -> Weights: ...

    @abc.abstractmethod
    def _norm_bound(self, weight: Weights) -> Float[Array, ""]: ...


class MonotoneDense(MonotoneOperator):
    """The monotone operator of a fully connected network, a matrix.

        W = (1 - m) I - AᵀA + skew (B - Bᵀ),   A and B any square matrices

    Every matrix with the inequality is of this form.

    Args:
      width: features of z, its last axis.
      m: strong monotonicity of `I - W`.
      skew: constant factor of the skew part. A small one also makes an optimizer like Adam, whose steps are the same for every parameter,
        change that part by less; it is the part that asks forward-backward for small steps.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if m is not positive.

    Example:
      >>> W = MonotoneDense(4, m=0.5, rngs=nnx.Rngs(0))
      >>> W(jnp.ones((2, 4))).shape
      (2, 4)
      >>> print(jnp.linalg.eigvalsh(jnp.eye(4) - (W.weight() + W.weight().T) / 2).min() > 0.49)
      True

    Winston and Kolter, "Monotone operator equilibrium networks", 2020.
    """

    def __init__(self, width: int, *, m: Annotated[float, Range(gt=0)] = 1.0, skew: float = 0.25, rngs: nnx.Rngs) -> None:
        A, B = _initial(rngs, (width, width), width), _initial(rngs, (width, width), width)
        super().__init__(width, m, skew, A, B)

    def apply(self, weight: Weights, z: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        return z @ weight.mT

    def resolvent(self, weight: Weights, alpha: float | Float[Array, ""]) -> Map:
        factors = lu_factor((1 + alpha) * jnp.eye(self.width, dtype=weight.dtype) - alpha * _wide(weight))
        return lambda v: lu_solve(factors, _wide(v).reshape(-1, self.width).T).T.reshape(v.shape).astype(v.dtype)

    def _gram(self, A: Array) -> Weights:
        return jnp.matmul(A.mT, A, precision="highest")

    def _transpose(self, B: Array) -> Weights:
        return B.mT

    def _norm_bound(self, weight: Weights) -> Float[Array, ""]:
        return norm_bound(weight)


class MonotoneConv(MonotoneOperator):
    """The monotone operator of a convolutional network: a convolution with zero padding that keeps the size.

        W = (1 - m) I - AᵀA + skew (B - Bᵀ)

    where B is such a convolution, and A one with kernels of half the size whose result is larger than the image, as far as it has a pixel
    to see. With that border AᵀA is itself a convolution, of A's kernel with itself, and so is W: one convolution of `size` per
    product, where the formula has four. Without it AᵀA would be another map at the image's edge.

    Args:
      width: channels of z.
      size: side of the kernel of W, odd; that of A is `(size + 1) / 2`.
      m: strong monotonicity of `I - W`.
      skew: constant factor of the skew part. A small one also makes an optimizer like Adam, whose steps are the same for every parameter,
        change that part by less; it is the part that asks forward-backward for small steps.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if m is not positive, or `size` is not odd.

    Example:
      >>> W = MonotoneConv(8, rngs=nnx.Rngs(0))
      >>> W(jnp.ones((2, 5, 5, 8))).shape
      (2, 5, 5, 8)

    Winston and Kolter, "Monotone operator equilibrium networks", 2020, whose padding is circular.
    """

    def __init__(
        self,
        width: int,
        *,
        size: Annotated[int, Range(ge=1)] = 3,
        m: Annotated[float, Range(gt=0)] = 1.0,
        skew: float = 0.25,
        rngs: nnx.Rngs,
    ) -> None:
        if size < 1 or size % 2 == 0:
            raise ValueError(f"size must be odd and positive, so that the kernel has a centre, got {size}")
        half = (size + 1) // 2
        A = _initial(rngs, (half, half, width, width), half * half * width)
        B = _initial(rngs, (size, size, width, width), size * size * width)
        super().__init__(width, m, skew, A, B)

    def apply(self, weight: Kernel, z: Images) -> Images:
        return conv_same(z, weight)

    def resolvent(self, weight: Kernel, alpha: float | Float[Array, ""]) -> None:
        return None

    def _gram(self, A: Kernel) -> Weights:
        # Pixel d of (AᵀA)'s kernel is Σ A[p + d] A[p]ᵀ: each input's kernel, an image, is correlated with those of all inputs.
        border = [(side - 1, side - 1) for side in A.shape[:2]]
        images, kernels = A.transpose(2, 0, 1, 3), A.transpose(0, 1, 3, 2)
        numbers = ("NHWC", "HWIO", "NHWC")
        gram = lax.conv_general_dilated(images, kernels, (1, 1), border, dimension_numbers=numbers, precision="highest")
        return gram.transpose(1, 2, 0, 3)

    def _transpose(self, B: Kernel) -> Weights:
        return transposed(B)

    def _norm_bound(self, weight: Kernel) -> Float[Array, ""]:
        return conv_norm_bound(weight)


def _wide(a: Array | np.ndarray) -> Array:
    """In float32 or better, which LAPACK and Fourier transforms ask for."""
    return jnp.asarray(a, jnp.promote_types(a.dtype, jnp.float32))


def _initial(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: int) -> Array:
    """Gaussian weights whose map has a norm near 1: that of a square Gaussian matrix is twice the root of its width."""
    return jax.random.normal(rngs.params(), shape) / (2 * np.sqrt(inputs))
