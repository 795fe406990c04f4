"""What all figures share: colours, axes and grids of images.

Figures are made without pyplot, so that drawing needs no display, and changes nothing in a program that draws its own.
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito (2008), told apart by colour-blind readers
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"

SEQUENTIAL = "viridis"
"""Colour map of quantities that start at zero: its lightness rises steadily, so that it also reads in grey."""


def panels(columns: int, rows: int = 1, width: float = 3.4, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure with equal panels, row by row, each `width` by `height` inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout=ConstrainedLayoutEngine(w_pad=0.1))  # inches
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]
    return figure, axes


def tidy(axes: Axes) -> None:
    """Faint grid lines behind the data, and no frame above and to the right of it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an example of this shape is a picture to look at: height, width and one or three channels."""
    return len(shape) == 3 and shape[-1] in (1, 3) and min(shape[:2]) > 1


def show_image(axes: Axes, image: np.ndarray, low: float, high: float) -> None:
    """Draw one `(height, width, channels)` picture whose values lie between `low` and `high`."""
    unit = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    if image.shape[-1] == 1:
        axes.imshow(unit[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(unit, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def show_grid(axes: Axes, images: np.ndarray, low: float, high: float) -> None:
    """Draw many pictures as one square mosaic with white gaps of a tenth of a picture."""
    n, height, width, channels = images.shape
    side = math.ceil(math.sqrt(n))
    gap = max(1, round(0.1 * min(height, width)))
    mosaic = np.full((math.ceil(n / side) * (height + gap) - gap, side * (width + gap) - gap, channels), float(high))
    for index, image in enumerate(images):
        row, column = divmod(index, side)
        top, left = row * (height + gap), column * (width + gap)
        mosaic[top : top + height, left : left + width] = image
    show_image(axes, mosaic, low, high)
