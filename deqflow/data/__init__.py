"""Data sources and the input pipeline: what a model is trained on. Knows no models.

A `Source` tells its `DataSpec` before any example is read and gives `Records` for each split; `train_batches` and `eval_batches` turn
records into batches.
"""

from deqflow.data.pipeline import eval_batches, train_batches
from deqflow.data.source import InMemory, Records, Source
from deqflow.data.spec import DataSpec

__all__ = ["DataSpec", "InMemory", "Records", "Source", "eval_batches", "train_batches"]
