"""All that is used of the engine of `tl_norms.studies`, imported in this one place."""

from ..studies.engine.corpus import Item, Made
from ..studies.engine.correlation import spearman
from ..studies.engine.executors import Model
from ..studies.engine.options import made
from ..studies.engine.partial import Mergeable
from ..studies.engine.run import run
from ..studies.engine.study import Reading, Study
from ..studies.engine.tallies import Rows
from ..studies.engine.tokens import Batch, Window, special_ids
from ..studies.errors import ExcludedTextWarning, UnfitTextError
from ..studies.tables import frame

__all__ = [
    "Batch",
    "ExcludedTextWarning",
    "Item",
    "Made",
    "Mergeable",
    "Model",
    "Reading",
    "Rows",
    "Study",
    "UnfitTextError",
    "Window",
    "frame",
    "made",
    "run",
    "spearman",
    "special_ids",
]
