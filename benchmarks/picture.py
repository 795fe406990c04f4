"""The figure of `solvers.py`: the residual against the evaluations spent, and below it where the best of every library arrives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from counted import LIMIT, PROBLEMS, TOLERANCE
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which the colour-blind tell apart.
OURS = {
    "Picard": "#999999",
    "Newton": "#CC79A7",
    "Anderson(5)": "#E69F00",
    "Broyden(10)": "#56B4E9",
    "Anderson(20)": "#D55E00",
    "Broyden(64)": "#0072B2",
    "Anderson(64)": "#009E73",
}
THEIRS = {"jaxopt": "o", "optimistix": "s", "TorchDEQ": "^", "banax": "D"}
WIDTH = {"affine_0.9": 155, "affine_0.99": 170, "tanh_0.9": 48}  # of the panels, in evaluations; a curve may leave its panel
DARK = "#222222"


def draw(rows: Sequence[Any], path: Path) -> None:
    """Our solvers, and of every other library the solver that needs the fewest evaluations on the problem."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10})
    layout = {"sharex": "col", "sharey": "row", "height_ratios": (4, 1.25), "layout": "constrained"}
    figure, panels = plt.subplots(2, len(PROBLEMS), figsize=(11, 5.4), **layout)
    for column, (key, problem) in enumerate(PROBLEMS.items()):
        here = [row for row in rows if row.problem == key and row.logs]
        best = {library: _best(here, library) for library in THEIRS}
        _curves(panels[0, column], here, best, WIDTH[key])
        _arrivals(panels[1, column], {"deqflow": _best(here, "deqflow"), **best}, WIDTH[key])
        panels[0, column].set_title(problem.title)
        panels[1, column].set(xlabel="evaluations of $f$ and products with its Jacobian", xlim=(0, WIDTH[key]))
    panels[0, 0].set_ylabel(r"$\|f(z) - z\|_2$, median over seeds")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def _best(rows: Sequence[Any], library: str) -> Any:
    return min((row for row in rows if row.library == library), key=lambda row: row.median, default=None)


def _curves(panel: Any, here: Sequence[Any], best: dict[str, Any], width: int) -> None:
    for name, color in OURS.items():
        row = next(row for row in here if row.library == "deqflow" and row.solver == name)
        curve = _until_met(row.curve(LIMIT))
        panel.plot(range(1, len(curve) + 1), curve, color=color, lw=2.2, label=name)
        if len(curve) > width:
            arrow = {"xy": (width, curve[width - 1]), "xytext": (-2, 11), "textcoords": "offset points"}
            panel.annotate(f"{name}, {row.median:g} \N{RIGHTWARDS ARROW}", ha="right", color="#666666", **arrow)
    for index, (library, row) in enumerate(best.items()):
        if row is not None:
            curve = _until_met(row.curve(LIMIT))
            marks = {"marker": THEIRS[library], "ms": 4, "mfc": "white", "mew": 0.9, "markevery": (index * width // 60, width // 15)}
            panel.plot(range(1, len(curve) + 1), curve, color=DARK, lw=0.9, ls=(0, (4, 3)), label=f"{library}, its best", **marks)
    panel.axhline(TOLERANCE, color="0.75", lw=0.8, zorder=0)
    panel.set(yscale="log", ylim=(6e-7, 30))


def _until_met(curve: np.ndarray) -> np.ndarray:
    """The curve as far as its first point within the tolerance, which is drawn at the tolerance."""
    met = np.flatnonzero(curve <= TOLERANCE)
    return np.maximum(curve[: met[0] + 1], TOLERANCE) if met.size else curve


def _arrivals(panel: Any, best: dict[str, Any], width: int) -> None:
    for height, (library, row) in enumerate(best.items()):
        if row is None:
            panel.text(0.02 * width, -height, "not installed", va="center", fontsize=8)
            continue
        style = {"marker": THEIRS[library], "mfc": "white"} if library in THEIRS else {"marker": "o", "mfc": DARK}
        panel.hlines(-height, 0, row.median, color="0.85", lw=0.8, zorder=0)
        panel.plot(row.median, -height, color=DARK, ms=5, ls="", **style)
        panel.text(row.median + 0.025 * width, -height, f"{row.median:g}  {row.solver}", va="center", fontsize=8)
    panel.set(yticks=[-height for height in range(len(best))], yticklabels=list(best), ylim=(0.6 - len(best), 0.6))
    panel.tick_params(axis="y", length=0)
