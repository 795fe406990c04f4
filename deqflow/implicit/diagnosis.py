"""What `diagnose` reports: one row of numbers per sample, and what they mean."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from deqflow.implicit.status import Status

# A gradient that is off by more than this has lost its first digit.
_GRADIENT_ERROR = 0.1

# More samples than this are counted, not named.
_NAMED = 6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """The health of a solution and of its gradient; `print` shows it as a table, with problems and remedies.

    J is `∂f/∂z` at the value returned. Arrays have shape `(batch,)`, or no axis for a solve with `batched=False`. A failed sample, and one
    whose Jacobian is not finite, has NaN for every number that could not be had.

    Attributes:
      gradient: the name of the kind of gradient.
      size: the dimension n of a sample.
      epsilon: the machine epsilon of the type in which the numbers were computed.
      exact: whether singular values and `gradient_error` come from the whole Jacobian, which is so for `n <= steps`; estimates otherwise.
      status: how the solve ended, a `Status` as an integer.
      steps: solver steps taken.
      residual: `‖f(z) - z‖₂` at the value returned, measured anew.
      relative_residual: `‖f(z) - z‖₂ / ‖f(z)‖₂`.
      lipschitz: the certified Lipschitz constant that was given; NaN where none was.
      error: of the distance `‖z - z*‖₂` to the solution, the bound `residual / (1 - lipschitz)` of Banach's theorem, or the estimate
        `residual / smallest_singular_value`, its largest value to first order.
      error_is_bound: which of the two. A constant of 1 or more gives no bound, nor does one that the measured `‖J‖₂` contradicts. The
        rounding errors of evaluating `f` are not in it.
      spectral_radius: the largest modulus of an eigenvalue of J, by Arnoldi; plain iteration converges nearby where it is below 1.
      spectral_radius_residual: how far J would have to be changed, in norm, to have an eigenvalue of exactly that modulus; 0 where the
        Krylov space is invariant under J, and the value exact up to rounding.
      arnoldi_steps: the dimension of that Krylov space.
      jacobian_norm: `‖J‖₂`; `f` contracts nearby, in the Euclidean norm, where it is below 1. If not `exact`, a lower estimate.
      smallest_singular_value: of `I - J`, which is its distance to the nearest singular matrix, where the implicit function theorem
        fails. If not `exact`, an upper estimate.
      largest_singular_value: of `I - J`. If not `exact`, a lower estimate.
      condition: their ratio, by which errors may grow in the gradient. If not `exact`, a lower estimate.
      backward_status: how the linear solve `(I - J)ᵀ w = g` ended, by the linear solver of `Implicit`, or by `GMRES()` for the other
        kinds of gradient; the forward status for a failed sample, whose gradient is zero without any solve.
      backward_steps: its steps.
      backward_residual: `‖g - (I - J)ᵀ w‖₂ / ‖g‖₂`, measured anew.
      gradient_error: the relative error `‖w - w*‖₂ / ‖w*‖₂` of what the gradient in question makes of the cotangent g, before it goes
        through `∂f`; `w* = (I - J)⁻ᵀ g` is solved accurately, and the number NaN where that is impossible. Near `epsilon * condition`
        it is rounding.
    """

    gradient: str
    size: int
    epsilon: float
    exact: bool
    status: Int[np.ndarray, "*batch"]
    steps: Int[np.ndarray, "*batch"]
    residual: Float[np.ndarray, "*batch"]
    relative_residual: Float[np.ndarray, "*batch"]
    lipschitz: Float[np.ndarray, "*batch"]
    error: Float[np.ndarray, "*batch"]
    error_is_bound: Bool[np.ndarray, "*batch"]
    spectral_radius: Float[np.ndarray, "*batch"]
    spectral_radius_residual: Float[np.ndarray, "*batch"]
    arnoldi_steps: Int[np.ndarray, "*batch"]
    jacobian_norm: Float[np.ndarray, "*batch"]
    smallest_singular_value: Float[np.ndarray, "*batch"]
    largest_singular_value: Float[np.ndarray, "*batch"]
    condition: Float[np.ndarray, "*batch"]
    backward_status: Int[np.ndarray, "*batch"]
    backward_steps: Int[np.ndarray, "*batch"]
    backward_residual: Float[np.ndarray, "*batch"]
    gradient_error: Float[np.ndarray, "*batch"]

    @property
    def failed(self) -> Bool[np.ndarray, "*batch"]:
        """Whether the solve failed, so that the value is a placeholder and the gradient zero."""
        return np.asarray(self.status >= Status.DIVERGED)

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, with which samples, and what to change; empty where nothing is."""
        alive = ~self.failed
        known = alive & np.isfinite(self.spectral_radius)
        least = "" if self.exact else "at least "
        solver = "the linear solver of Implicit" if self.gradient == "Implicit" else "GMRES(), as Implicit() would do it,"
        found = [(self.status == code, f"{code.message} ({code.name})", code.remedy) for code in Status if code != Status.CONVERGED]
        found += [
            (
                alive & ~known,
                "the Jacobian of f holds NaN or infinity at the value returned",
                "look for a square root, logarithm, division or norm at 0",
            ),
            (
                known & (self.spectral_radius >= 1),
                f"plain iteration leaves this solution (spectral radius {_most(self.spectral_radius):.3g})",
                "use Anderson, Broyden or Newton with Implicit, as truncated series do not approach the gradient",
            ),
            (
                known & (self.condition >= self.epsilon**-0.5),
                f"I - J is nearly singular (condition {least}{_most(self.condition):.1e}), and half of the gradient's digits are lost",
                "penalise the Jacobian of f or bound the norms of its weights, or use a wider type",
            ),
            (
                known & (self.backward_status != Status.CONVERGED),
                f"the linear solve by {solver} did not converge (relative residual {_most(self.backward_residual):.1e})",
                "raise its max_steps, or GMRES's restart, or use another linear solver",
            ),
            (
                known & (self.gradient_error > _GRADIENT_ERROR),
                f"the gradient by {self.gradient} is off by {_most(self.gradient_error):.0%}",
                "use Implicit, with a smaller rtol in its linear solver, or more steps where the kind of gradient has them",
            ),
            (
                known & np.isnan(self.gradient_error),
                "the error of the gradient is unknown, as (I - J)ᵀ w = g could not be solved",
                "give diagnose more steps, or see whether I - J is singular or g is zero",
            ),
            (
                known & (self.lipschitz >= 1),
                "a Lipschitz constant of 1 or more bounds no error, which is only estimated",
                "bound the norms of the weights of f",
            ),
            (
                known & (self.lipschitz < 1) & ~self.error_is_bound,
                f"‖J‖₂ is {_most(self.jacobian_norm):.3g}, larger than the Lipschitz constant given, so the error is only estimated",
                "certify f anew, in the Euclidean norm",
            ),
        ]
        return tuple(f"{_named(np.asarray(where))}: {what}; {remedy}" for where, what, remedy in found if np.any(where))

    def __str__(self) -> str:
        total, failed = self.status.size, int(self.failed.sum())
        lines = [f"{total} {'sample' if total == 1 else 'samples'} of dimension {self.size}, {failed} failed"]
        if failed < total:
            lines += self._table()
        problems = self.problems
        lines += ["Problems:", *(f"- {problem}." for problem in problems)] if problems else ["No problem found."]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """A line for every quantity: its median and its worst over the samples where it is known."""
        kinds = np.unique(self.error_is_bound[~self.failed])[::-1]
        error = " or ".join("bound" if kind else "estimate" for kind in kinds)
        estimated = "" if self.exact else ", estimate"
        table = [
            ("solver steps", self.steps.astype(float), np.argmax),
            ("relative residual ‖f(z) - z‖ / ‖f(z)‖", self.relative_residual, np.argmax),
            (f"distance to the solution, {error}", self.error, np.argmax),
            (f"spectral radius of J, {self.arnoldi_steps.max()} Arnoldi steps", self.spectral_radius, np.argmax),
            ("residual of that eigenvalue", self.spectral_radius_residual, np.argmax),
            (f"norm of J{estimated}", self.jacobian_norm, np.argmax),
            (f"smallest singular value of I - J{estimated}", self.smallest_singular_value, np.argmin),
            (f"condition of I - J{estimated}", self.condition, np.argmax),
            ("relative residual of the linear solve", self.backward_residual, np.argmax),
            (f"relative error of the gradient, {self.gradient}", self.gradient_error, np.argmax),
        ]
        width = max(len(name) for name, _, _ in table)
        lines = [f"{'':{width}}{'median':>11}{'worst':>11}{'sample':>8}"]
        for name, values, worst_of in table:
            values = np.ravel(values)
            known = np.flatnonzero(~np.isnan(values))
            if known.size:
                worst = known[worst_of(values[known])]
                lines.append(f"{name:{width}}{np.median(values[known]):11.3g}{values[worst]:11.3g}{worst:8}")
            else:
                lines.append(f"{name:{width}}{'unknown':>11}")
        return lines


def _most(values: Float[np.ndarray, "*batch"]) -> float:
    """The largest of the values that are known."""
    return float(np.max(values, initial=-np.inf, where=~np.isnan(values)))


def _named(where: Bool[np.ndarray, "*batch"]) -> str:
    if where.ndim == 0:
        return "the sample"
    numbers = np.flatnonzero(where).tolist()
    if len(numbers) == where.size > 1:
        return f"all {where.size} samples"
    if len(numbers) > _NAMED:
        return f"{len(numbers)} of {where.size} samples, among them {', '.join(map(str, numbers[:_NAMED]))}"
    return f"sample{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
