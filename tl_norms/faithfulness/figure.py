"""The picture of a report: methods by metrics, with intervals; and the page that holds it."""

import html
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingExtraError
from .errors import FaithfulnessInputError
from .summary import POOLED, Which

if TYPE_CHECKING:
    from .report import Report

_ROW, _PANEL, _NAMES, _HEAD = 20, 200, 220, 70  # pixels
_ACROSS = 4
_GREY, _GRID = "#808080", "rgba(128, 128, 128, 0.3)"  # to be read on light and on dark pages
_STYLE = """
:root{color-scheme:light dark}body{font:14px sans-serif;margin:1em;max-width:80em}.wide{overflow-x:auto}
table{border-collapse:collapse}td,th{padding:.2em .6em;border-bottom:1px solid #8884;text-align:right}
td:first-child,th:first-child{text-align:left}
"""


def draw(report: "Report", examples: Which, task: str | None, backend: str) -> Any:
    """One panel per metric and removal; see `Report.figure`.

    Raises:
        MissingExtraError: the library is not installed.
        FaithfulnessInputError: another backend, or a task without examples.
    """
    panels = _panels(report, examples, task)
    if backend == "plotly":
        return _with_plotly(panels)
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


def _with_plotly(panels: dict[str, Any]) -> Any:
    try:
        from plotly import graph_objects
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingExtraError("figures need plotly: pip install 'tl_norms[plot]'") from error
    across, n = min(_ACROSS, len(panels)), max(len(part) for part in panels.values())
    down = -(-len(panels) // across)
    height = down * (_HEAD + _ROW * n)
    figure = make_subplots(
        down, across, shared_yaxes=True, subplot_titles=list(panels), horizontal_spacing=0.02,
        vertical_spacing=_HEAD / height if down > 1 else 0,
    )  # fmt: skip
    for number, part in enumerate(panels.values()):
        row, column = number // across + 1, number % across + 1
        error = dict(
            type="data", symmetric=False, array=part["high"] - part["value"], arrayminus=part["value"] - part["low"]
        )
        dots = graph_objects.Scatter(
            x=part["value"], y=list(part.index), error_x=error, mode="markers", showlegend=False,
            customdata=np.stack([part["low"], part["high"], part["n"]], -1),
            hovertemplate="%{y}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}<extra></extra>",  # noqa: E501
        )  # fmt: skip
        figure.add_trace(dots, row, column)
        if "random" in part.index and np.isfinite(part.loc["random", "value"]):
            figure.add_vline(x=part.loc["random", "value"], line_dash="dot", line_color="grey", row=row, col=column)  # type: ignore[arg-type]
    figure.update_yaxes(autorange="reversed", gridcolor=_GRID)
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GREY, showticklabels=True)
    figure.update_layout(
        height=height + 40, width=_NAMES + _PANEL * across, template="plotly_white", font_color=_GREY,
        paper_bgcolor="rgba(0, 0, 0, 0)", plot_bgcolor="rgba(0, 0, 0, 0)", margin=dict(l=_NAMES - 20, r=20, t=50, b=30),
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
        axis.errorbar(part["value"], range(len(part)), xerr=np.stack([low, high]).clip(min=0), fmt="o", markersize=3)
        if "random" in part.index:
            axis.axvline(part.loc["random", "value"], color="grey", linestyle=":", linewidth=1)
        axis.set_title(label, fontsize=9)
        axis.set_yticks(range(len(part)), list(part.index), fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
    axes[0].invert_yaxis()
    return figure


def write_page(report: "Report", path: str | os.PathLike) -> None:
    """Figure and tables in one file that needs no network."""
    figure = draw(report, "right" if report.right.any() else "wrong", None, "plotly")
    parts = [
        "<!doctype html><meta charset='utf-8'><title>Faithfulness of attributions</title>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<style>{_STYLE}</style>",
        "<h1>Faithfulness of attributions</h1>",
        f"<p>{html.escape(repr(report))}</p>",
        f"<p>{html.escape('; '.join(f'{name}: {value}' for name, value in report.about))}</p>",
        f"<div class='wide'>{figure.to_html(full_html=False, include_plotlyjs=True)}</div>",
    ]
    for examples in ("right", "wrong"):
        if (report.right == (examples == "right")).any():
            table = report.to_dataframe(examples)  # type: ignore[arg-type]
            parts += [f"<h2>Examples that the model gets {examples}</h2>"]
            parts += [f"<div class='wide'>{table.round(3).to_html(index=False)}</div>"]
    for title, entries in (("Methods refused", report.refused), ("Examples excluded", report.excluded)):
        if entries:
            rows = "".join(f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in entries)
            parts.append(f"<h2>{title} ({len(entries)})</h2><ul>{rows}</ul>")
    Path(path).expanduser().write_text("\n".join(parts), encoding="utf-8")
