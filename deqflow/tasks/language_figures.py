"""Pictures of a language model."""

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from deqflow.tasks.figures import BLUE, ORANGE, panels, tidy


def loss_by_position(loss: Float[np.ndarray, "n time"]) -> Figure:
    """Draw the mean loss against how many tokens a prediction has seen.

    Args:
      loss: nats of every token of every window.
    """
    figure, (axes,) = panels(columns=1, width=5, height=3.4)
    mean = float(loss.mean(dtype=np.float64))
    axes.plot(np.arange(1, loss.shape[1] + 1), loss.mean(axis=0, dtype=np.float64), color=BLUE, linewidth=1.8)
    axes.axhline(mean, color=ORANGE, linestyle="--", linewidth=1.2, label=f"mean {mean:.3f}")
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("loss of the next one (nats)")
    axes.set_title(f"Test loss of {len(loss)} windows", fontsize="medium")
    tidy(axes)
    axes.legend(framealpha=0.8, edgecolor="none", fontsize="small")
    return figure
