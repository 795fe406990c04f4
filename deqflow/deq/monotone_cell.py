"""Monotone equilibrium cells, whose equilibrium exists and is unique by parametrisation."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key

from deqflow.deq.cell import Cell
from deqflow.implicit import GMRES, LinearSolver, MonotoneInclusion
from deqflow.nn import Conv, Linear, MonotoneConv, MonotoneDense, MonotoneOperator
from deqflow.registry import FromRuntime, Range

Splitting = Literal["forward_backward", "peaceman_rachford"]


class MonotoneCell(Cell):
    """The cell of a monotone equilibrium network, for any monotone operator W and any injection U.

        z = relu(W z + u),   u = U(x)

    has one solution for every input, since `I - W = m I + AᵀA - S` with a skew S is strongly monotone. Iterating that equation itself may
    diverge; with `F(z) = z - W z - u` the two splittings

    - forward-backward, `z -> relu(z - alpha F(z))`: one product with W,
    - Peaceman-Rachford, `z -> (I + alpha F)⁻¹ |z - alpha F(z)|`: a product and a linear solve

    have the same fixed point, and plain iteration finds it from any start: the first for small alpha, the second for every alpha > 0.
    (`|v| = 2 relu(v) - v` is the reflected resolvent of the ReLU. The usual Peaceman-Rachford iterates `v = z - alpha F(z)`; this is the
    same sequence, seen where it is z.) Any solver may accelerate them. A step that is too large shows in the status of the solve. The
    residual of a solve is that of the map, for forward-backward about alpha times that of the equation.

    Where alpha is left out, it is computed once per solve from upper bounds a of `‖AᵀA‖` and s of `‖S‖`:

        forward-backward:   alpha = min(1 / (m + a), m / (m² + 2 s²)),   a contraction by √(1 - alpha m)
        Peaceman-Rachford:  alpha = 1 / √(m (m + a) + s²)

    The first is far above the textbook's `m / (m + a + s)²`: the symmetric part, the gradient of a convex function, allows steps up to one
    over its norm, and only the skew part asks for less.

    Args:
      operator: W.
      inject: any module that maps the input x to u.
      splitting: the map whose fixed point is solved for.
      alpha: step size, or `None` for the one above. It changes the way, not the solution.
      linear: solves Peaceman-Rachford's linear systems where the operator cannot be factored (convolutions). A system that misses its
        tolerance counts as diverged, so choose it above rounding and below the solver's.

    Raises:
      ValueError: if alpha is not positive and finite, or there is no such splitting.

    Example:
      >>> from deqflow.deq import DEQ
      >>> cell = MonotoneCell(MonotoneDense(4, rngs=nnx.Rngs(0)), nnx.Linear(3, 4, rngs=nnx.Rngs(1)))
      >>> x = jnp.ones((2, 3))
      >>> z = DEQ(cell)(x)
      >>> print(jnp.allclose(z, jax.nn.relu(cell.operator(z) + cell.inject(x)), atol=1e-3))
      True

    Winston and Kolter, "Monotone operator equilibrium networks", 2020.
    """

    def __init__(
        self,
        operator: MonotoneOperator,
        inject: Callable[[Any], Array],
        *,
        splitting: Splitting = "forward_backward",
        alpha: float | None = None,
        linear: LinearSolver = GMRES(),
    ) -> None:
        if splitting not in get_args(Splitting):
            raise ValueError(f"splitting must be {' or '.join(get_args(Splitting))}, got {splitting!r}")
        if alpha is not None and not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {alpha}; leave it out for a step that always converges")
        self.operator = operator
        self.inject = inject
        self.splitting = splitting
        self.alpha = alpha
        self.linear = linear

    def prepare(self, x: Any, key: Key[Array, ""] | None = None) -> Callable[[Array], Array]:
        u, weight = self.inject(x), self.operator.weight()
        alpha = self.step_size().astype(u.dtype)

        def F(z: Array) -> Array:
            return z - self.operator.apply(weight, z) - u

        if self.splitting == "forward_backward":
            return MonotoneInclusion(F, _relu).forward_backward(alpha)

        solve = self.operator.resolvent(weight, alpha)
        resolvent = None if solve is None else lambda v, alpha: solve(v + alpha * u)
        reflect = MonotoneInclusion(F, _relu, resolvent, linear=self.linear).peaceman_rachford(alpha)

        def step(z: Array) -> Array:
            v = z - alpha * F(z)
            # reflect(v) = 2 (I + alpha F)⁻¹ |v| - |v|, and the resolvent in it is the next z.
            return (reflect(v) + jnp.abs(v)) / 2

        return step

    def initial(self, x: Any) -> Array:
        like = jax.eval_shape(self.inject, x)
        return jnp.zeros(like.shape, like.dtype)

    def step_size(self) -> Float[Array, ""]:
        """The step size alpha."""
        if self.alpha is not None:
            return jnp.asarray(self.alpha, jnp.float32)
        m = self.operator.m
        # The solution does not depend on the step, so there is nothing to differentiate.
        a, s = lax.stop_gradient(self.operator.norms())
        if self.splitting == "forward_backward":
            # With P = AᵀA and (P z)ᵀz >= ‖P z‖² / a, for alpha (m + a) <= 1:
            #   ‖z - alpha (m z + P z - S z)‖² <= ((1 - alpha m)² + 2 alpha² s²) ‖z‖² <= (1 - alpha m) ‖z‖².
            return jnp.minimum(1 / (m + a), m / (m**2 + 2 * s**2))
        return lax.rsqrt(m * (m + a) + s**2)


def _relu(v: Array, alpha: Any) -> Array:
    """The ReLU is the resolvent of its G for every alpha."""
    return jax.nn.relu(v)


class MonotoneDenseCell(MonotoneCell):
    """Fully connected monotone cell.

        z = relu(W z + U x + c)

    Args:
      width: features of z and x, their last axis.
      m: strong monotonicity of `I - W`; a larger one is solved in fewer steps and depends less on itself.
      skew: constant factor of the skew part of W.
      splitting: the map whose fixed point is solved for. Peaceman-Rachford factors one matrix per solve.
      alpha: step size, or `None` for one that converges.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if m or alpha is not positive and finite.

    Example:
      >>> cell = MonotoneDenseCell(8, splitting="peaceman_rachford", rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 8))
      >>> cell(cell.initial(x), x).shape
      (2, 8)

    Winston and Kolter, "Monotone operator equilibrium networks", 2020.
    """

    def __init__(
        self,
        width: Annotated[int, FromRuntime],
        *,
        m: Annotated[float, Range(gt=0)] = 1.0,
        skew: float = 0.25,
        splitting: Splitting = "forward_backward",
        alpha: Annotated[float, Range(gt=0)] | None = None,
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        operator = MonotoneDense(width, m=m, skew=skew, rngs=rngs)
        super().__init__(operator, Linear(width, width, rngs=rngs), splitting=splitting, alpha=alpha)


class MonotoneConvCell(MonotoneCell):
    """Convolutional monotone cell.

        z = relu(W * z + U * x + c)

    Args:
      width: channels of z and x.
      size: side of the kernels, odd.
      m: strong monotonicity of `I - W`; a larger one is solved in fewer steps and depends less on itself.
      skew: constant factor of the skew part of W.
      splitting: the map whose fixed point is solved for. Peaceman-Rachford solves a linear system in every step.
      alpha: step size, or `None` for one that converges.
      linear: solves those systems.
      rngs: random streams; `params` is used.

    Raises:
      ValueError: if m or alpha is not positive and finite, or `size` is not odd.

    Example:
      >>> cell = MonotoneConvCell(8, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 6, 6, 8))
      >>> cell(cell.initial(x), x).shape
      (2, 6, 6, 8)

    Winston and Kolter, "Monotone operator equilibrium networks", 2020.
    """

    def __init__(
        self,
        width: Annotated[int, FromRuntime],
        *,
        size: Annotated[int, Range(ge=1)] = 3,
        m: Annotated[float, Range(gt=0)] = 1.0,
        skew: float = 0.25,
        splitting: Splitting = "forward_backward",
        alpha: Annotated[float, Range(gt=0)] | None = None,
        linear: LinearSolver = GMRES(),
        rngs: Annotated[nnx.Rngs, FromRuntime],
    ) -> None:
        operator = MonotoneConv(width, size=size, m=m, skew=skew, rngs=rngs)
        super().__init__(operator, Conv(width, width, size=size, rngs=rngs), splitting=splitting, alpha=alpha, linear=linear)
