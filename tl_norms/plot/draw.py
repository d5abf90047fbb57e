"""From what is in a figure to the figure: one place where the library is chosen."""

from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import PlotInputError
from .picture import Picture

if TYPE_CHECKING:
    import matplotlib.figure
    import plotly.graph_objects

    Figure: TypeAlias = plotly.graph_objects.Figure | matplotlib.figure.Figure
else:
    Figure: TypeAlias = Any


def drawn(picture: Picture) -> Figure:
    """The figure, by plotly or matplotlib.

    Raises:
        PlotInputError: another backend.
        MissingExtraError: the library is not installed.
    """
    if picture.look.backend == "plotly":
        from .with_plotly import draw
    elif picture.look.backend == "matplotlib":
        from .with_matplotlib import draw
    else:
        raise PlotInputError(
            f"backend is {picture.look.backend!r}: expected 'plotly' (interactive) or 'matplotlib' (for papers)."
        )
    return draw(picture)
