"""Density estimation: the likelihood of the data under the model."""

import dataclasses
import functools
import math
from typing import Annotated, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from deqflow.registry import FromRuntime, Range, check_ranges
from deqflow.tasks.bijector_reports import report_rows
from deqflow.tasks.solves import batch_of_solves, summarize_solves
from deqflow.tasks.task import Batch, Figures, Task

_IMAGES = 64
_TEMPERATURE = 0.7  # of the samples beside those of the density itself, as in Glow: fewer of them are odd, and they are less diverse
_POINTS = 4000
_SIDE = 200


@runtime_checkable
class DensityModel(Protocol):
    """A model with a tractable log-likelihood, or a bound of it, that can be sampled from."""

    def log_prob(self, x: jax.Array, *, key: Key[Array, ""] | None = None) -> jax.Array: ...

    def sample(self, key: Key[Array, ""], n: int, *, temperature: float | Float[Array, ""] = 1.0) -> jax.Array: ...


@runtime_checkable
class ReportingModel(Protocol):
    """A density model that also tells how its solves and estimates went, as `deqflow.flows.Flow` does."""

    def log_prob_and_diagnostics(self, x: jax.Array, *, key: Key[Array, ""] | None = None) -> tuple[jax.Array, dict[str, Any]]: ...


@runtime_checkable
class Certified(Protocol):
    """A model made of maps whose Lipschitz constants are bounded."""

    def lipschitz_bounds(self) -> list[float]: ...


@runtime_checkable
class Inverted(Protocol):
    """A model that finds its way back by solving equations, and knows how far it misses."""

    def inverse_error(self, x: jax.Array, *, key: Key[Array, ""] | None = None) -> jax.Array: ...


@runtime_checkable
class DataInitialized(Protocol):
    """A model whose first parameters depend on data."""

    def initialize(self, x: jax.Array, key: Key[Array, ""]) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Density(Task):
    """Estimate a density, or the distribution of integer-valued images, by maximum likelihood.

    With examples of `D` numbers,

        loss = -log p(x) / D    (nats per dimension, mean over the batch),

    so that one gradient clip or learning rate means the same in 2 and in 3000 dimensions. What is reported is `nats`,
    the mean of `-log p(x)`, for real data, and `bits_per_dim`, `-log P(x) / (D ln 2)`, for data with `levels` integer values.

    Args:
      copies: evaluations of each example with independent noise (dequantisation, stochastic log-determinants), whose mean
        counts. The mean over draws estimates the same bound as one draw does, with less noise.
      levels: number of values of integer-valued data, from the data; `None` for real data.
      entropy: entropy of the true density in nats, from the data, where it is known; `gap = nats - entropy` is then reported,
        an estimate of the Kullback-Leibler divergence.

    Raises:
      ValueError: if `copies` is out of its range.

    Example:
      >>> Density().monitor, Density(levels=256).monitor
      ('nats', 'bits_per_dim')

    Uria et al., RNADE, 2013 (dequantisation); Theis et al., A note on the evaluation of generative models, 2016.
    """

    copies: Annotated[int, Range(ge=1)] = 1
    levels: Annotated[int | None, FromRuntime] = None
    entropy: Annotated[float | None, FromRuntime] = None

    def __post_init__(self) -> None:
        check_ranges(type(self).__init__, vars(self))

    @property
    def monitor(self) -> str:
        return "nats" if self.levels is None else "bits_per_dim"

    @property
    def maximize(self) -> bool:
        return False

    def initialize(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> None:
        """The model's own data-dependent initialisation, where it has one."""
        if isinstance(model, DataInitialized):
            model.initialize(batch["x"], key)

    def loss(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean negative log-likelihood in nats per dimension, with `nats` or `bits_per_dim`.

        A model that estimates log-determinants has `log_det_error` beside it, what that adds to the standard error of the reported number;
        one that solves equations the `solver_` numbers of an equilibrium layer, over all its equations.
        """
        x = batch["x"]
        log_prob, rows = _log_prob(model, x, key)
        nats = -log_prob.mean()
        numbers = {self.monitor: nats * self._scale(x), **batch_of_solves(rows)}
        if "log_det_variance" in rows:
            numbers["log_det_error"] = self._scale(x) * jnp.sqrt(rows["log_det_variance"].sum()) / len(x)
        return nats / _dimension(x), numbers

    def evaluate(self, model: nnx.Module, batch: Batch, key: Key[Array, ""]) -> dict[str, Array]:
        """Per example: `nats` or `bits_per_dim`, the mean of `copies` draws, and with two copies or more `noise_variance` of that mean.

        What the model reports of its solves and estimates comes with it, see `report_rows`, the worst of the draws.
        Points in the plane are returned too, as `x`, for the picture of the density.
        """
        x = batch["x"]
        graphdef, state = nnx.split(model)

        def draw(k: Key[Array, ""]) -> tuple[Float[Array, " batch"], dict[str, Array]]:
            # a copy made inside the loop, where a module may record its diagnostics
            log_prob, report = _log_prob(nnx.merge(graphdef, state, copy=True), x, k)
            return -self._scale(x) * log_prob, report

        draws, reports = jax.lax.map(draw, jax.random.split(key, self.copies))
        rows = {self.monitor: draws.mean(axis=0), **{name: report.max(axis=0) for name, report in reports.items()}}
        if "log_det_variance" in reports:
            rows["log_det_variance"] = self._scale(x) ** 2 * reports["log_det_variance"].mean(axis=0) / self.copies
        if self.copies > 1:
            rows["noise_variance"] = draws.var(axis=0, ddof=1) / self.copies
        if x.shape[1:] == (2,) and self.levels is None:
            rows["x"] = x
        return rows

    def summarize(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """`nats` or `bits_per_dim`, with standard errors; `gap`, where the entropy is known.

        `standard_error` is that of the mean over examples, as drawn from the data's distribution; `noise_error` what the model's
        noise contributes to it, which alone counts when two models are compared on the same examples, and `log_det_error` the part of
        that which the probes of estimated log-determinants show. `failures`, the
        fraction of examples without a finite likelihood, appears when there are any; the mean is then not finite either.
        """
        values = rows[self.monitor].astype(np.float64)
        n = len(values)
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, as it should be
            mean = float(values.mean())
        finite = np.isfinite(values)
        summary = {self.monitor: mean}
        if self.entropy is not None and self.levels is None:
            summary["gap"] = mean - self.entropy
        if n > 1:
            summary["standard_error"] = float(values.std(ddof=1)) / math.sqrt(n) if finite.all() else math.nan
        if "noise_variance" in rows:
            summary["noise_error"] = math.sqrt(rows["noise_variance"].astype(np.float64).sum()) / n
        if "log_det_variance" in rows:
            summary["log_det_error"] = math.sqrt(rows["log_det_variance"].astype(np.float64).sum()) / n
        if not finite.all():
            summary["failures"] = float((~finite).mean())
        return summary | summarize_solves(rows)

    def pictures(self, model: nnx.Module, rows: dict[str, np.ndarray], batch: dict[str, np.ndarray], key: Key[Array, ""]) -> Figures:
        """For images `samples`, at two temperatures beside data; for points in the plane `density`, beside data.

        Of a model made of maps that must contract also `lipschitz_bounds` by layer and, for real data, the `inverse_error`.
        """
        from deqflow.tasks.density_figures import bounds_by_layer, density_beside_data, grid_points, inverse_errors, sample_grid, view
        from deqflow.tasks.figures import is_image

        assert isinstance(model, DensityModel)
        graphdef, state = nnx.split(model)
        sample_key, density_key = jax.random.split(key)

        @functools.partial(jax.jit, static_argnums=1)
        def sample(state: Any, n: int, temperature: float | Array) -> jax.Array:
            return nnx.merge(graphdef, state).sample(sample_key, n, temperature=temperature)

        def miss(state: Any, x: jax.Array) -> jax.Array:
            model: Any = nnx.merge(graphdef, state)
            return model.inverse_error(x, key=density_key)

        data = batch["x"] if "mask" not in batch else batch["x"][batch["mask"] > 0]
        figures: Figures = {}
        if isinstance(model, Certified) and (bounds := model.lipschitz_bounds()):
            figures["lipschitz_bounds"] = bounds_by_layer(bounds)
            if isinstance(model, Inverted) and self.levels is None:
                figures["inverse_error"] = inverse_errors(np.asarray(jax.jit(miss)(state, data)))
        if is_image(data.shape[1:]):
            limits = (0.0, self.levels - 1.0) if self.levels is not None else (float(data.min()), float(data.max()))
            samples = {temperature: np.asarray(sample(state, _IMAGES, temperature)) for temperature in (1.0, _TEMPERATURE)}
            return {"samples": sample_grid(data[:_IMAGES], samples, limits), **figures}
        if "x" not in rows:
            return figures
        points = rows["x"][:_POINTS]
        limits = view(points)
        cells = grid_points(limits, _SIDE).reshape(_SIDE, _SIDE, 2)
        density = jax.jit(lambda state, x: _log_prob(nnx.merge(graphdef, state), x, density_key)[0])
        # line by line: a model with wide layers need not hold the whole grid at once
        log_density = np.stack([np.asarray(density(state, line)) for line in cells])
        nats = self.summarize(rows)["nats"]
        samples = np.asarray(sample(state, len(points), 1.0))
        return {"density": density_beside_data(points, log_density, samples, limits, nats, self.entropy), **figures}

    def _scale(self, x: jax.Array) -> float:
        """What turns nats of an example into the reported unit."""
        return 1.0 if self.levels is None else 1 / (_dimension(x) * math.log(2))


def _dimension(x: jax.Array) -> int:
    return math.prod(x.shape[1:])


def _log_prob(model: nnx.Module, x: jax.Array, key: Key[Array, ""]) -> tuple[Float[Array, " batch"], dict[str, Array]]:
    """The model's log-likelihood of every example in nats and what it reports with it, or an error if the model has none."""
    if not isinstance(model, DensityModel):
        raise ValueError(f"density estimation needs a model with log_prob and sample, such as realnvp; {type(model).__name__} has not")
    if isinstance(model, ReportingModel):
        log_p, diagnostics = model.log_prob_and_diagnostics(x, key=key)
    else:
        log_p, diagnostics = model.log_prob(x, key=key), {}
    if log_p.shape != x.shape[:1]:
        raise ValueError(f"log_prob must return one number per example, shape {x.shape[:1]}; this model returned {log_p.shape}")
    return log_p, report_rows(diagnostics)
