"""Why a figure can be refused, and the libraries it needs."""

import importlib
from types import ModuleType

from ..errors import MissingExtraError, TLNormsError


class PlotInputError(TLNormsError, ValueError):
    """The result, the tokens or the options of a figure do not fit together."""


def needed(module: str, extra: str = "plot") -> ModuleType:
    """A library of an extra, imported when the first figure is drawn.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise MissingExtraError(f"this figure needs {library}: pip install 'tl_norms[{extra}]'") from error
