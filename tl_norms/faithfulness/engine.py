"""All that is used of the engine of `tl_norms.studies`, imported in this one place."""

from ..studies.corpus import Item, Made
from ..studies.correlation import spearman
from ..studies.errors import ExcludedTextWarning, UnfitTextError
from ..studies.frames import frame
from ..studies.partial import Mergeable
from ..studies.pool import Model
from ..studies.run import made, run
from ..studies.tallies import Rows
from ..studies.tokens import Batch, Window, special_ids

__all__ = [
    "Batch",
    "ExcludedTextWarning",
    "Item",
    "Made",
    "Mergeable",
    "Model",
    "Rows",
    "UnfitTextError",
    "Window",
    "frame",
    "made",
    "run",
    "spearman",
    "special_ids",
]
