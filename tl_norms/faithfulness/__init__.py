"""The judge in the box: which attribution is faithful?

    from tl_norms import faithfulness
    report = faithfulness.evaluate(model, ["agreement", "ioi"], limit=50)
    print(report.markdown())

Tasks say what decides, removals take it away, metrics compare, and every attribution method that there is stands in one
table: the package's own, those of others, gradients, erasure, and chance.
"""

from . import tasks as tasks
from .combining import combined
from .errors import FaithfulnessInputError, MethodOutputError, RemovalError, TaskError
from .evaluation import evaluate
from .methods import Method, available
from .methods.rules import attnlrp, gim
from .metrics import DEFAULT, METRICS, Metric, Scored
from .removals import REMOVALS, removed
from .report import Report
from .subsets import Subsets
from .targets import Probe, Target
from .tasks import Example, Excluded, Task

__all__ = [
    "DEFAULT",
    "METRICS",
    "REMOVALS",
    "Example",
    "Excluded",
    "FaithfulnessInputError",
    "Method",
    "MethodOutputError",
    "Metric",
    "Probe",
    "RemovalError",
    "Report",
    "Scored",
    "Subsets",
    "Target",
    "Task",
    "TaskError",
    "attnlrp",
    "available",
    "combined",
    "evaluate",
    "gim",
    "removed",
]
