"""Pictures of a density model: its density and its samples, each beside the data, and how well it is inverted."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from deqflow.tasks.figures import BLUE, GREY, ORANGE, SEQUENTIAL, is_image, panels, show_grid, tidy


def sample_grid(
    data: Num[np.ndarray, "n height width channels"],
    samples: Mapping[float, Num[np.ndarray, "m height width channels"]],
    limits: tuple[float, float],
) -> Figure:
    """Draw test images and samples of the model side by side.

    Args:
      data: raw images.
      samples: what the model draws at each temperature, in the range of the raw images.
      limits: values of black and white.
    """
    titles = ["Test images", *("Samples of the model" if t == 1 else f"Samples at temperature {t:g}" for t in samples)]
    figure, axes = panels(columns=len(titles), width=4, height=4.2)
    for ax, images, title in zip(axes, (data, *samples.values()), titles, strict=True):
        show_grid(ax, images, *limits)
        ax.set_title(title, fontsize="medium")
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(wspace=0.08)
    return figure


def view(points: Float[np.ndarray, "n 2"]) -> tuple[float, float, float, float]:
    """Limits `(left, right, bottom, top)` of a square that holds nearly all points, with a margin of a tenth."""
    low, high = np.quantile(points, 0.002, axis=0), np.quantile(points, 0.998, axis=0)
    centre, half = (low + high) / 2, 0.6 * float((high - low).max())
    half = half if half > 0 else 1.0
    return (float(centre[0] - half), float(centre[0] + half), float(centre[1] - half), float(centre[1] + half))


def grid_points(limits: tuple[float, float, float, float], side: int) -> Float[np.ndarray, "n 2"]:
    """The centres of `side` by `side` cells, row by row from the bottom."""
    left, right, bottom, top = limits
    at = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(left + (right - left) * at, bottom + (top - bottom) * at)
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def density_beside_data(
    points: Float[np.ndarray, "n 2"],
    log_density: Float[np.ndarray, "side side"],
    samples: Float[np.ndarray, "m 2"],
    limits: tuple[float, float, float, float],
    nats: float,
    entropy: float | None,
) -> Figure:
    """Draw test points, as many samples of the model, and the model's density, on the same axes.

    Cells of a non-finite log-density are red.

    Args:
      points: test data.
      log_density: of the model at `grid_points(limits, side)`, in nats.
      samples: what the model draws.
      limits: of all axes, see `view`.
      nats: mean negative log-likelihood of the test data.
      entropy: of the true density, where it is known.
    """
    left, right, bottom, top = limits
    finite = np.isfinite(log_density)
    density = np.exp(np.minimum(np.where(finite, log_density, -np.inf), 50.0))
    # The colour scale leaves out the sharpest peaks, which would darken all the rest.
    seen = density[density > 1e-2 * density.max(initial=0)]
    peak = float(np.quantile(seen, 0.995)) if seen.size else 1.0

    dot = float(np.clip(2.5 * (4000 / len(points)) ** 0.25, 2.5, 6))
    figure, axes = panels(columns=3, width=3.6, height=3.7)
    for ax, cloud, title in zip(axes, (points, samples), ("test points", "samples of the model"), strict=False):
        ax.plot(*cloud.T, ".", color="black", markersize=dot, markeredgewidth=0, alpha=0.5, rasterized=True)
        ax.set_title(f"{len(cloud)} {title}", fontsize="medium")
    image = axes[2].imshow(density, origin="lower", extent=limits, cmap=SEQUENTIAL, vmin=0, vmax=peak, interpolation="nearest")
    axes[2].imshow(np.ma.masked_where(finite, np.ones_like(density)), origin="lower", extent=limits, cmap="Reds", vmin=0, vmax=1.3)
    broken = int((~finite).sum())
    about = "" if entropy is None else f", entropy {entropy:.3f}"
    axes[2].set_title(f"{nats:.3f} nats{about}" + (f", {broken} cells not finite" if broken else ""), fontsize="medium")
    bar = figure.colorbar(image, ax=axes, location="right", shrink=0.75, aspect=30, label="model density (per unit area)", extend="max")
    bar.locator = MaxNLocator(5)
    for ax in axes:
        ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel="$x_1$")
    axes[0].set_ylabel("$x_2$")
    return figure


def bounds_by_layer(bounds: Sequence[float]) -> Figure:
    """Draw the certified Lipschitz bound of every map that must contract; where one is 1 or more, nothing says that it can be inverted.

    Args:
      bounds: from the data to the latent; `inf` where nothing is certified.
    """
    values = np.asarray(bounds, np.float64)
    at = np.arange(1, len(values) + 1)
    top = 1.15 * float(max(1.0, values[np.isfinite(values)].max(initial=0)))
    figure, (axes,) = panels(columns=1, width=5)
    axes.bar(at, np.minimum(values, top), color=np.where(values < 1, BLUE, ORANGE).tolist(), width=0.7)
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="map, from the data to the latent", ylabel="certified Lipschitz bound", ylim=(0, top))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.set_title(f"largest {values.max():.4g}", fontsize="medium")
    tidy(axes)
    return figure


def inverse_errors(errors: Float[np.ndarray, " n"]) -> Figure:
    """Draw how far the inverse of a flow misses the points that it should return to.

    Args:
      errors: `max |inverse(forward(x)) - x|` of every example, in the units of the data.
    """
    finite = errors[np.isfinite(errors)].astype(np.float64)
    seen = np.maximum(finite, 1e-9) if finite.size else np.array([1.0])  # of an exact inverse too there is a place on the axis
    figure, (axes,) = panels(columns=1, width=5)
    low, high = np.floor(np.log10(seen.min())), np.ceil(np.log10(seen.max()) + 1e-9)
    axes.hist(seen if finite.size else [], bins=np.logspace(low, max(high, low + 1), 41).tolist(), color=BLUE)
    axes.set(xscale="log", xlabel="max |inverse(forward(x)) - x|", ylabel=f"of {len(errors)} test examples")
    lost = len(errors) - len(finite)
    about = [f"median {np.median(finite):.1e}, largest {finite.max():.1e}"] if finite.size else []
    axes.set_title(", ".join(about + [f"{lost} not finite"] * (lost > 0)), fontsize="medium")
    tidy(axes)
    return figure


def samples_figure(samples: Num[np.ndarray, "n *event"], levels: int | None) -> Figure | None:
    """Draw samples by themselves: a grid of images, or points in the plane; `None` for anything else.

    Args:
      samples: what the model draws.
      levels: number of values of integer-valued data, whose largest is white; `None` for real data, scaled to its range.
    """
    if is_image(samples.shape[1:]):
        figure, axes = panels(columns=1, width=5, height=5)
        show_grid(axes[0], samples, *((0.0, levels - 1.0) if levels is not None else (float(samples.min()), float(samples.max()))))
        return figure
    if samples.shape[1:] == (2,):
        left, right, bottom, top = view(samples)
        figure, axes = panels(columns=1, width=4, height=4)
        axes[0].plot(*samples.T, ".", color="black", markersize=3, markeredgewidth=0, alpha=0.5, rasterized=True)
        axes[0].set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
        return figure
    return None
