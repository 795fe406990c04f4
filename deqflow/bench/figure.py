"""The picture of the memory benchmark."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deqflow.bench.compare import Record
from deqflow.bench.methods import METHODS
from deqflow.tasks.figures import panels, tidy

# Okabe and Ito (2008), told apart by colour-blind readers; the markers tell them apart in grey.
_COLORS = dict(zip(METHODS, ("#000000", "#E69F00", "#56B4E9", "#CC79A7", "#0072B2", "#009E73", "#D55E00"), strict=True))
_MARKERS = dict(zip(METHODS, "os^vDPX", strict=True))


def draw(studies: Mapping[str, Sequence[Record]]) -> Figure:
    """Peak memory, time and gradient error against the number of solver steps, a row of panels for each study.

    Memory is what was measured, with what XLA had planned as a dotted line. A hollow marker in the middle panel says that the solver
    stopped before it had taken all of its steps.

    Args:
      studies: the records by title.
    """
    figure, axes = panels(3, max(1, len(studies)))
    for row, (title, records) in enumerate(studies.items()):
        ticks = sorted({record["steps"] for record in records})
        memory, time, error = axes[3 * row : 3 * row + 3]
        for method in dict.fromkeys(record["method"] for record in records):
            here = [record for record in records if record["method"] == method]
            _line(memory, here, "peak_bytes", 2**-20, label=method.replace("_", " "))
            _line(memory, here, "compiled_bytes", 2**-20, linestyle=":", marker="", linewidth=1)
            _line(time, here, "seconds", 1, marker="")
            for record in here:
                _line(time, [record], "seconds", 1, markerfacecolor="white" if "stopped" in record["status"] else None)
            _line(error, here, "gradient_error", 1)
        for panel, label in ((memory, "peak memory (MiB)"), (time, "time of a gradient (s)"), (error, "relative gradient error")):
            panel.set(xscale="log", yscale="log", xlabel="solver steps", ylabel=label)
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.set_xticks([], minor=True)
            tidy(panel)
        memory.set_title(title, loc="left", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), frameon=False, fontsize=8)
    return figure


def _line(axes: Axes, records: Sequence[Record], what: str, unit: float, **style: object) -> None:
    """One curve, of those records that have a value."""
    values = [(record["steps"], unit * record[what]) for record in records if record[what]]
    if values:
        method = records[0]["method"]
        usual = {"color": _COLORS[method], "marker": _MARKERS[method], "markersize": 4.5, "linewidth": 1.5}
        axes.plot(*zip(*sorted(values), strict=True), **{**usual, **style})
