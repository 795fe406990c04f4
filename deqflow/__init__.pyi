# What `__init__.py` imports on first use, for type checkers.
from deqflow import bench as bench
from deqflow import config as config
from deqflow import data as data
from deqflow import deq as deq
from deqflow import flows as flows
from deqflow import implicit as implicit
from deqflow import models as models
from deqflow import nn as nn
from deqflow import registry as registry
from deqflow import tasks as tasks
from deqflow import train as train
from deqflow.deq import DEQ as DEQ
from deqflow.flows import Flow as Flow
from deqflow.implicit import GMRES as GMRES
from deqflow.implicit import Anderson as Anderson
from deqflow.implicit import Broyden as Broyden
from deqflow.implicit import Implicit as Implicit
from deqflow.implicit import Newton as Newton
from deqflow.implicit import Picard as Picard
from deqflow.implicit import Solution as Solution
from deqflow.implicit import Status as Status
from deqflow.implicit import argmin as argmin
from deqflow.implicit import diagnose as diagnose
from deqflow.implicit import fixed_point as fixed_point
from deqflow.implicit import implicit_diff as implicit_diff
from deqflow.implicit import implicit_function as implicit_function
from deqflow.implicit import root as root
from deqflow.train import load as load

__version__: str
