"""From what is in a figure to the figure: one place where the library is chosen."""

from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import PlotInputError
from .spec import Backend, Lines, Maps, Table

if TYPE_CHECKING:
    import matplotlib.figure
    import plotly.graph_objects

    Figure: TypeAlias = plotly.graph_objects.Figure | matplotlib.figure.Figure
else:
    Figure: TypeAlias = Any


def drawn(content: Maps | Lines | Table, backend: Backend) -> Figure:
    """The figure, by plotly or matplotlib.

    Raises:
        PlotInputError: another backend.
        MissingExtraError: the library is not installed.
    """
    if backend == "plotly":
        from . import with_plotly as library
    elif backend == "matplotlib":
        from . import with_matplotlib as library
    else:
        raise PlotInputError(f"backend is {backend!r}: expected 'plotly' (to look into) or 'matplotlib' (to print).")
    if isinstance(content, Maps):
        return library.draw_maps(content)
    return library.draw_lines(content) if isinstance(content, Lines) else library.draw_table(content)
