"""Pictures of a classifier: what it confuses, where it errs, and how its equation was solved."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Num
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deqflow.tasks.figures import BLUE, ORANGE, panels, show_image, tidy

_ANNOTATED = 20
"""With more classes than this, numbers in the cells and all names on the axes cannot be read."""


def confusion_matrix(labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], names: Sequence[str]) -> Figure:
    """Draw how often each class was taken for each other: counts, shaded blue where right and orange where wrong.

    Args:
      labels: true classes, from 0.
      predictions: predicted classes.
      names: of all classes.
    """
    classes = len(names)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    right = np.eye(classes, dtype=bool)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # A scale of their own: a few errors in a hundred would be white beside the right ones.
    worst = max(float(share[~right].max(initial=0)), 1e-12)

    size = float(np.clip(0.36 * classes + 1.6, 3.4, 7))
    figure, (axes,) = panels(columns=1, width=size, height=size)
    axes.imshow(np.ma.masked_where(~right, share), cmap="Blues", vmin=0, vmax=1.8)
    axes.imshow(np.ma.masked_where(right | (counts == 0), share), cmap="Oranges", vmin=-0.3 * worst, vmax=1.5 * worst)
    if classes <= _ANNOTATED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(column, row, str(count), ha="center", va="center", fontsize="small")
        axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(range(classes), names)
        axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="0.85", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("0.85")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    hits = int((labels == predictions).sum())
    axes.set_title(f"Test accuracy {hits / max(len(labels), 1):.4f} ({hits} of {len(labels)})", fontsize="medium")
    return figure


def least_certain(
    images: Num[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n classes"],
    names: Sequence[str],
    limits: tuple[float, float],
) -> Figure:
    """Draw the twelve images whose true class got the least probability, with what was predicted; errors in orange.

    Args:
      images: raw images.
      labels: true classes, from 0.
      probabilities: predicted, of every class.
      names: of all classes.
      limits: values of black and white.
    """
    true = probabilities[np.arange(len(labels)), labels]
    chosen = np.argsort(true, kind="stable")[:12]
    figure, axes = panels(columns=4, rows=3, width=1.75, height=1.95)
    for ax in axes[len(chosen) :]:
        ax.remove()
    for ax, index in zip(axes, chosen, strict=False):
        show_image(ax, images[index], *limits)
        label, guess = int(labels[index]), int(probabilities[index].argmax())
        text = f"{names[guess]} ({probabilities[index, guess]:.0%})"
        if guess != label:
            text += f"\nis {names[label]} ({true[index]:.0%})"
        ax.set_title(text, color="black" if guess == label else ORANGE, fontsize="small", loc="left")
    figure.suptitle(f"Least certain of {len(labels)} test images", fontsize="medium")
    return figure


def solver_residuals(trace: Float[np.ndarray, "steps n"], tolerance: float | None) -> Figure:
    """Draw the relative residual of a batch of samples after every solver step: median and the middle 80 %.

    A sample that has stopped counts with its last residual.

    Args:
      trace: `‖f(z) - z‖ / ‖f(z)‖` after each step, NaN once a sample has stopped, and where the solver does not look.
      tolerance: relative residual at which a sample stops, if there is one.
    """
    seen = ~np.isnan(trace)
    taken = np.where(seen.any(axis=0), len(trace) - np.argmax(seen[::-1], axis=0), 0)
    at = np.flatnonzero(seen.any(axis=1)) + 1 if seen.any() else np.array([1])
    held = trace[at - 1].copy()
    for step in range(1, len(at)):
        held[step] = np.where(np.isnan(held[step]), held[step - 1], held[step])
    # Zero, an exact solution, has no place on a logarithmic axis; it is drawn as the smallest float32 residual one can see.
    low, median, high = np.quantile(np.clip(np.nan_to_num(held, nan=np.inf), 1e-12, 1e12), [0.1, 0.5, 0.9], axis=1)

    figure, (axes,) = panels(columns=1, width=5, height=3.4)
    axes.fill_between(at, low, high, color=BLUE, alpha=0.25, linewidth=0, label="middle 80 % of samples")
    axes.plot(at, median, color=BLUE, linewidth=1.8, marker="o" if len(at) <= 40 else "", markersize=3, label="median")
    if tolerance is not None:
        axes.axhline(tolerance, color=ORANGE, linestyle="--", linewidth=1.2, label=f"tolerance {tolerance:g}")
    axes.set_yscale("log")
    axes.set_xlabel("solver step")
    axes.set_ylabel("relative residual ‖f(z) - z‖ / ‖f(z)‖")
    axes.set_title(f"Solver on {trace.shape[1]} test examples, median {np.median(taken):.0f} steps", fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(axes)
    axes.legend(framealpha=0.8, edgecolor="none", fontsize="small")
    return figure
