"""Convolutions whose gradients are as fast inside a solver's loop as outside of it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from deqflow.nn.weight import Parametrise, make_weight, value_of

Images = Float[Array, "batch height width channels"]
Kernel = Float[Array, "rows columns inputs outputs"]


def conv_same(x: Images, kernel: Kernel) -> Float[Array, "batch height width outputs"]:
    """Convolve with stride 1 and zero padding that keeps the size.

        y[i, j] = Σ_{a, b} x[i + a, j + b] kernel[a, b]

    with `a` and `b` counted from the kernel's centre. The value and all derivatives are those of `jax.lax.conv`. What differs is how the
    transposes are written: with respect to `x` as a convolution with the flipped kernel, and on the CPU with respect to the kernel as one
    of transposed arrays. XLA on the CPU runs those that JAX writes, with reversal and transposition folded into them, much slower inside a
    loop, where every implicit backward pass meets the one and every unrolled pass both.

    Args:
      x: images.
      kernel: weights, with an odd number of rows and columns.

    Returns:
      Images of the same size.

    Raises:
      ValueError: if a side of the kernel is even, or the channels do not match.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
      >>> jax.grad(lambda x: conv_same(x, kernel).sum())(x)[0, :, :, 0]
      Array([[4., 6., 6., 4.],
             [6., 9., 9., 6.],
             [6., 9., 9., 6.],
             [4., 6., 6., 4.]], dtype=float32)
    """
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"the kernel needs an odd number of rows and columns to keep the image's size, got {kernel.shape[:2]}")
    if x.shape[-1] != kernel.shape[2]:
        raise ValueError(f"the kernel takes {kernel.shape[2]} channels, got images with {x.shape[-1]}")
    # The primitive is lowered outside of any `jax.default_matmul_precision` context, so it has to remember it.
    return _conv_p.bind(x, kernel, precision=jax.config.jax_default_matmul_precision, preferred_element_type=None)  # pyright: ignore[reportAttributeAccessIssue]


def transposed(kernel: Kernel) -> Float[Array, "rows columns outputs inputs"]:
    """The kernel of the transpose of `x -> conv_same(x, kernel)`: flipped, with inputs and outputs exchanged.

    Example:
      >>> import jax.numpy as jnp
      >>> transposed(jnp.arange(3.0).reshape(1, 3, 1, 1)).ravel()
      Array([2., 1., 0.], dtype=float32)
    """
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


class Conv(nnx.Module):
    """Convolution with stride 1 and zero padding that keeps the size: `conv_same(x, gain * kernel) + bias`.

    Args:
      inputs: channels of the input.
      outputs: channels of the output.
      size: side of the kernel, odd.
      gain: constant factor of the kernel. The kernel itself starts with standard deviation `1 / sqrt(size² inputs)`, so a small gain
        also makes an optimizer like Adam, whose steps are the same for every parameter, change the map by less.
      bias: whether to add one number per channel.
      parametrise: how the kernel is parametrised, such as `WeightNorm`; `None` for as it is.
      rngs: random streams; `params` is used.

    Example:
      >>> conv = Conv(1, 8, rngs=nnx.Rngs(0))
      >>> conv(jnp.ones((2, 4, 4, 1))).shape
      (2, 4, 4, 8)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: int = 3,
        gain: float = 1.0,
        bias: bool = True,
        parametrise: Parametrise | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        kernel = jax.random.normal(rngs.params(), (size, size, inputs, outputs))
        self.gain = gain
        self.kernel = make_weight(kernel / np.sqrt(size * size * inputs), parametrise)
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None

    def prepare(self) -> Callable[[Images], Images]:
        """The map, with its weights computed now, once for all its uses."""
        kernel = self.gain * value_of(self.kernel)
        bias = None if self.bias is None else self.bias[...]

        def convolve(x: Images) -> Float[Array, "batch height width outputs"]:
            y = conv_same(x, kernel)
            return y if bias is None else y + bias

        return convolve

    def __call__(self, x: Images) -> Float[Array, "batch height width outputs"]:
        return self.prepare()(x)


def _convolve(x: Images, kernel: Kernel, **options: Any) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def _transpose_x(cotangent: Array, x: Any, kernel: Array, *, precision: Any, preferred_element_type: Any) -> Array:
    kind = None if preferred_element_type is None else x.aval.dtype
    return _conv_p.bind(cotangent.astype(kernel.dtype), transposed(kernel), precision=precision, preferred_element_type=kind)


def _transpose_kernel(cotangent: Array, x: Array, kernel: Any, *, precision: Any, preferred_element_type: Any) -> Array:
    rows, columns = kernel.aval.shape[:2]
    cotangent = cotangent.astype(x.dtype)

    def written_out(x: Array, cotangent: Array) -> Array:
        padding = [(rows // 2, rows // 2), (columns // 2, columns // 2)]
        x, cotangent = x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)  # the batch is what is summed over
        out = lax.conv_general_dilated(x, cotangent, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision)
        return out.transpose(1, 2, 0, 3)

    def of_jax(x: Array, cotangent: Array) -> Array:
        like = jax.ShapeDtypeStruct(kernel.aval.shape, kernel.aval.dtype)
        (out,) = jax.linear_transpose(lambda kernel: _convolve(x, kernel, precision=precision), like)(cotangent)
        return out

    # Inside a loop, XLA on the CPU runs JAX's own some 100 times slower; others have a kernel for it.
    return lax.platform_dependent(x, cotangent, cpu=written_out, default=of_jax)


def _batch(args: Any, axes: Any, **options: Any) -> tuple[Array, int]:
    x, kernel = args
    if axes[1] is not None:
        return jax.vmap(functools.partial(_convolve, **options), axes)(x, kernel), 0
    # One kernel for all: the mapped axis is more of the batch.
    x = jnp.moveaxis(x, axes[0], 0)
    y = _conv_p.bind(x.reshape(-1, *x.shape[2:]), kernel, **options)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _abstract(x: Any, kernel: Any, **options: Any) -> Any:
    return jax.make_jaxpr(functools.partial(_convolve, **options))(x, kernel).out_avals[0]


# A primitive, because only a bilinear primitive says once how it transposes and stays differentiable to any order: custom_vjp has no
# forward mode, and jax.custom_derivatives.linear_call neither batches nor differentiates with respect to the kernel.
_conv_p = Primitive("conv_same")
_conv_p.def_impl(jax.jit(_convolve, static_argnames=("precision", "preferred_element_type")))
_conv_p.def_abstract_eval(_abstract)
mlir.register_lowering(_conv_p, mlir.lower_fun(_convolve, multiple_results=False))
ad.defbilinear(_conv_p, _transpose_x, _transpose_kernel)
batching.primitive_batchers[_conv_p] = _batch
