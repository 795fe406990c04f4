# What `__init__.py` imports on first use, for type checkers.
from deqflow.train.running import Result as Result
from deqflow.train.running import run as run
from deqflow.train.saved import SavedRun as SavedRun
from deqflow.train.saved import load as load
from deqflow.train.settings import TrainSettings as TrainSettings
