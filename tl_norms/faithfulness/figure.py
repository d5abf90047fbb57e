"""The picture of a report: methods by metrics, with intervals."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingExtraError
from .errors import FaithfulnessInputError
from .summary import POOLED, Which

if TYPE_CHECKING:
    from .report import Report

_HEAD, _ACROSS = 60, 4
_GREY, _GRID = "#808080", "rgba(128, 128, 128, 0.3)"  # to be read on light and on dark pages
_BLUE = "#3a85d0"


@dataclass(frozen=True)
class Size:
    """Of a plotly figure: panels in a row, and pixels of a method's row, of a panel and of the methods' names."""

    across: int = _ACROSS
    row: int = 20
    panel: int = 200
    names: int = 200


NARROW = Size(1, 17, 160, 175)  # a phone's


def draw(report: "Report", examples: Which, task: str | None, backend: str, size: Size = Size()) -> Any:
    """One panel per metric and removal; see `Report.figure`. `size` is a plotly figure's.

    Raises:
        MissingExtraError: the library is not installed.
        FaithfulnessInputError: another backend, or a task without examples.
    """
    panels = _panels(report, examples, task)
    if backend == "plotly":
        return _with_plotly(panels, size)
    if backend == "matplotlib":
        return _with_matplotlib(panels)
    raise FaithfulnessInputError(f"backend is {backend!r}; expected 'plotly' or 'matplotlib'.")


def _panels(report: "Report", examples: Which, task: str | None) -> dict[str, Any]:
    """Label -> its rows of the table, by method."""
    table: Any = report.to_dataframe(examples)
    name = task or (POOLED if len(report.tasks) != 1 else report.tasks[0])
    table = table[table["task"] == name]
    if not len(table):
        raise FaithfulnessInputError(f"there is no example of {name!r} that is {examples}.")
    return {label: table[table["metric"] == label].set_index("method") for label in report.labels}


def _with_plotly(panels: dict[str, Any], size: Size) -> Any:
    try:
        from plotly import graph_objects
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingExtraError("figures need plotly: pip install 'tl_norms[plot]'") from error
    across, n = min(size.across, len(panels)), max(len(part) for part in panels.values())
    down = -(-len(panels) // across)
    height = down * size.row * n + (down - 1) * _HEAD
    figure = make_subplots(
        down, across, shared_yaxes=True, subplot_titles=list(panels), horizontal_spacing=0.02 if across > 1 else 0,
        vertical_spacing=_HEAD / height if down > 1 else 0,
    )  # fmt: skip
    for number, part in enumerate(panels.values()):
        row, column = number // across + 1, number % across + 1
        colours = [_GREY if name == "random" else _BLUE for name in part.index]
        error = dict(
            type="data", symmetric=False, array=part["high"] - part["value"], arrayminus=part["value"] - part["low"],
            color=_BLUE, thickness=1.5, width=3,
        )  # fmt: skip
        dots = graph_objects.Scatter(
            x=part["value"], y=list(part.index), error_x=error, mode="markers", showlegend=False,
            marker=dict(color=colours, size=7), customdata=np.stack([part["low"], part["high"], part["n"]], -1),
            hovertemplate="%{y}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}<extra></extra>",  # noqa: E501
        )  # fmt: skip
        figure.add_trace(dots, row, column)
        if "random" in part.index and np.isfinite(part.loc["random", "value"]):
            figure.add_vline(x=part.loc["random", "value"], line_dash="dot", line_color=_GREY, row=row, col=column)  # type: ignore[arg-type]
    figure.update_yaxes(range=[n - 0.5, -0.5], gridcolor=_GRID, tickfont_size=12 if across > 1 else 11)
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GREY, showticklabels=True)
    figure.update_layout(
        height=height + 80, width=size.names + 20 + size.panel * across, template="plotly_white", font_color=_GREY,
        paper_bgcolor="rgba(0, 0, 0, 0)", plot_bgcolor="rgba(0, 0, 0, 0)", hovermode="closest",
        margin=dict(l=size.names, r=20, t=50, b=30),
        modebar=dict(bgcolor="rgba(0, 0, 0, 0)", color=_GREY, activecolor=_BLUE),
    )  # fmt: skip
    figure.update_annotations(font_size=12)
    return figure


def _with_matplotlib(panels: dict[str, Any]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("figures need matplotlib: pip install 'tl_norms[plot]'") from error
    across, n = min(_ACROSS, len(panels)), max(len(part) for part in panels.values())
    down = -(-len(panels) // across)
    figure = Figure(figsize=(2.2 + 2.1 * across, down * (0.9 + 0.2 * n)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(down, across, sharey=True)).flatten()
    for axis in axes[len(panels) :]:
        figure.delaxes(axis)
    for axis, (label, part) in zip(axes, panels.items(), strict=False):
        low, high = part["value"] - part["low"], part["high"] - part["value"]
        axis.errorbar(
            part["value"], range(len(part)), xerr=np.stack([low, high]).clip(min=0), fmt="o", markersize=3, color=_BLUE
        )
        if "random" in part.index:
            axis.axvline(part.loc["random", "value"], color="grey", linestyle=":", linewidth=1)
        axis.set_title(label, fontsize=9)
        axis.set_yticks(range(len(part)), list(part.index), fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
    axes[0].invert_yaxis()
    return figure
