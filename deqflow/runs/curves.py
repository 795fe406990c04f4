"""The learning curves of a run, from its `metrics.jsonl`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deqflow.runs.metrics import Row
from deqflow.tasks.figures import BLUE, GREEN, ORANGE, panels, tidy

_COLOURS = {"train": BLUE, "validation": ORANGE, "test": GREEN}


@dataclasses.dataclass(frozen=True)
class _Panel:
    label: str
    names: dict[str, str]  # metric -> what the legend adds to the split's name
    scale: Literal["linear", "log"] = "linear"
    better: Literal["low", "high", "neither"] = "neither"

    def drawn(self, rows: Sequence[Row]) -> bool:
        return any(name in row for row in rows for name in self.names)


_PANELS = [
    _Panel("negative log-likelihood (bits/dim)", {"bits_per_dim": ""}, better="low"),
    _Panel("negative log-likelihood (nats)", {"nats": ""}, better="low"),
    _Panel("loss", {"loss": ""}, scale="log"),
    _Panel("accuracy", {"accuracy": ""}, better="high"),
    _Panel("solver steps", {"solver_steps": ""}),
    _Panel("relative residual", {"solver_residual": ", mean", "residual_median": ", median"}, scale="log"),
]


def learning_curves(rows: Sequence[Row]) -> Figure:
    """Draw likelihood or loss, accuracy, solver steps and residual against the training step, as far as `rows` have them.

    Where there is a likelihood, the loss is left out: it is the same in another unit. Steps at which a number was not finite are marked
    by red lines. Values of the first steps, and single steps of the training that stand out, may lie outside the panel.

    Args:
      rows: what `deqflow.runs.metrics.read_rows` returns.

    Raises:
      ValueError: if no row has any of these numbers.

    Example:
      >>> figure = learning_curves([{"step": 1, "split": "train", "loss": 2.0}, {"step": 2, "split": "train", "loss": 1.0}])
      >>> [axes.get_ylabel() for axes in figure.axes]
      ['loss']
    """
    chosen = [panel for panel in _PANELS if panel.drawn(rows)]
    if any(panel.better == "low" for panel in chosen):
        chosen = [panel for panel in chosen if panel.label != "loss"]
    if not chosen:
        raise ValueError("no row has a loss, an accuracy, a likelihood or solver statistics, so there is no curve to draw")
    figure, axes = panels(columns=min(len(chosen), 2), rows=math.ceil(len(chosen) / 2), width=4.6, height=2.9)
    for unused in axes[len(chosen) :]:
        unused.remove()
    for panel, ax in zip(chosen, axes, strict=False):
        _draw(panel, ax, rows)
    return figure


def _draw(panel: _Panel, axes: Axes, rows: Sequence[Row]) -> None:
    drawn: list[float] = []
    wanted: list[float] = []
    broken: set[float] = set()
    for split, colour in _COLOURS.items():
        for name, suffix in panel.names.items():
            chosen = [row for row in rows if row["split"] == split and name in row]
            # A test is of the parameters that were selected, which may be those of an earlier step.
            points = np.array([(float(row.get("selected_step", row["step"])), float(row[name])) for row in chosen]).reshape(-1, 2)
            finite = np.isfinite(points[:, 1])
            broken |= set(points[~finite, 0].tolist())
            if not finite.any():
                continue
            drawn += points[finite, 1].tolist()
            wanted += _wanted(points[finite], split, panel.better)
            if split == "test":
                value = points[finite, 1][-1]
                text = f"test: {value:.4g}" if abs(value) >= 0.001 else f"test: {value:.1e}"
                axes.plot(*points[finite].T, "*", color=colour, markersize=11, label=text, zorder=3, clip_on=False)
            else:
                axes.plot(
                    *points.T, color=colour, linewidth=1.5, marker="o" if len(points) <= 30 else "", markersize=3, label=split + suffix
                )
    for index, step in enumerate(sorted(broken)):
        axes.axvline(step, color="red", linewidth=0.8, zorder=1.5, label="not finite" if index == 0 else None)
    axes.set_xlabel("training step")
    axes.set_ylabel(panel.label)
    axes.set_xlim(left=0)
    tidy(axes)
    if panel.scale == "log" and drawn and min(drawn) > 0:
        axes.set_yscale("log")
        low, high = min(drawn), max(drawn)
        margin = max(1.2, math.sqrt(10 * low / high))  # one power of ten at least, so that small changes look small
        axes.set_ylim(low / margin, high * margin)
    elif drawn:
        low, high = min(wanted), max(wanted)
        margin = 0.08 * max(high - low, 1e-3 * abs(high), 1e-9)
        axes.set_ylim(low - margin, high + margin)
    # above the panel, where it hides no data
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        frameon=False,
        fontsize="small",
        columnspacing=0.8,
        handlelength=1.2,
        handletextpad=0.5,
    )


def _wanted(points: np.ndarray, split: str, better: Literal["low", "high", "neither"]) -> list[float]:
    """The values of one curve that must lie within the limits.

    Of the validation and the test that is all but the first tenth of the steps, as they may get worse again; of the many values of
    the training also the worst tenth may lie outside, where a single step stands out.
    """
    steps, values = points.T
    if split != "test":
        values = values[steps > 0.1 * steps.max()]
    if split == "train" and better != "neither":
        worst = np.quantile(values, 0.9 if better == "low" else 0.1)
        values = np.clip(values, *((None, worst) if better == "low" else (worst, None)))
    return values.tolist()
