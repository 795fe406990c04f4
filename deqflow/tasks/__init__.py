"""What a model is trained for: its loss, its metrics and its pictures."""

from deqflow.tasks.classification import Classification
from deqflow.tasks.density import Density
from deqflow.tasks.language_modelling import LanguageModelling
from deqflow.tasks.segmentation import Segmentation
from deqflow.tasks.task import Batch, Figures, Task

__all__ = ["Batch", "Classification", "Density", "Figures", "LanguageModelling", "Segmentation", "Task"]
