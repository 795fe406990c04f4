"""Pictures of a segmentation."""

import numpy as np
from jaxtyping import Float, Int, Num, UInt8
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from deqflow.tasks.figures import BLUE, ORANGE, panels, show_image


def hardest(
    images: Num[np.ndarray, "n height width channels"],
    labels: Int[np.ndarray, "n height width"],
    predictions: Int[np.ndarray, "n height width"],
    loss: Float[np.ndarray, " n"],
    limits: tuple[float, float],
) -> Figure:
    """Draw the twelve images with the largest loss: what was rightly taken for a class above 0 in blue, wrong pixels in orange.

    Args:
      images: raw images.
      labels: true classes of their pixels, from 0.
      predictions: predicted classes.
      loss: of every image.
      limits: values of black and white.
    """
    chosen = np.argsort(-loss, kind="stable")[:12]
    figure, axes = panels(columns=4, rows=3, width=1.75, height=1.95)
    for ax in axes[len(chosen) :]:
        ax.remove()
    for ax, index in zip(axes, chosen, strict=False):
        show_image(ax, overlaid(images[index], labels[index], predictions[index], limits), 0, 255)
        wrong = int((labels[index] != predictions[index]).sum())
        ax.set_title(f"{wrong} wrong" if wrong else "exact", color=ORANGE if wrong else "black", fontsize="small", loc="left")
    figure.suptitle(f"Hardest of {len(labels)} test images", fontsize="medium")
    return figure


def overlaid(
    image: Num[np.ndarray, "height width channels"],
    labels: Int[np.ndarray, "height width"],
    predictions: Int[np.ndarray, "height width"],
    limits: tuple[float, float],
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with its right pixels of a class above 0 in blue and its wrong ones in orange, through which some of it is seen."""
    low, high = limits
    unit = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    unit = np.broadcast_to(unit, (*unit.shape[:2], 3)).copy()
    wrong = labels != predictions
    for where, colour in ((~wrong & (labels > 0), BLUE), (wrong, ORANGE)):
        unit[where] = 0.25 * unit[where] + 0.75 * np.array(to_rgb(colour))
    return np.round(255 * unit).astype(np.uint8)
