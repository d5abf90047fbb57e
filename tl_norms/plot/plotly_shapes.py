"""Boxes, lines, dots and labels by plotly."""

from collections.abc import Sequence
from typing import Any

from . import colours
from .parts import Parts
from .picture import Drawing
from .plotly_text import GREY, escaped


def draw_shapes(figure: Parts, go: Any, panel: Drawing, x: str, y: str, stops: Sequence[str]) -> None:
    """Boxes, strokes, dots and labels on axes `x` and `y` in pixels; hover is on points that are not seen.

    Args:
        stops: colours of boxes, from lowest to highest
    """
    at = {"xaxis": x, "yaxis": y, "showlegend": False}
    for stroke in panel.strokes:
        line = {"width": stroke.width, "color": stroke.colour or GREY.format(0.35)}
        figure.add_trace(go.Scatter(x=stroke.x, y=stroke.y, mode="lines", line=line, hoverinfo="skip", **at))
    told = [stroke for stroke in panel.strokes if stroke.hover]
    if told:  # half way and at a third from either end, so that crossing lines can be told apart
        shares = (0.3, 0.5, 0.7)
        figure.add_trace(
            go.Scatter(
                x=[s.x[0] + (s.x[1] - s.x[0]) * t for s in told for t in shares],
                y=[s.y[0] + (s.y[1] - s.y[0]) * t for s in told for t in shares],
                mode="markers", marker={"size": 9, "opacity": 0}, hoverinfo="text",
                hovertext=[escaped(s.hover).replace("\n", "<br>") for s in told for _ in shares], **at,
            )
        )  # fmt: skip
    if panel.dots:
        figure.add_trace(
            go.Scatter(
                x=[dot.x for dot in panel.dots], y=[dot.y for dot in panel.dots], mode="markers",
                marker={
                    "size": [dot.size for dot in panel.dots], "opacity": 1, "line": {"width": 0},
                    "color": [dot.colour or "rgb(150,150,150)" for dot in panel.dots],
                },
                hoverinfo="text", hovertext=[escaped(dot.hover).replace("\n", "<br>") for dot in panel.dots], **at,
            )
        )  # fmt: skip
    for box in panel.boxes:
        fill = "rgba(0,0,0,0)" if box.share is None else colours.mixed(stops, (box.share + 1) / 2)
        ends = {"x0": box.x, "x1": box.x + box.width, "y0": box.y, "y1": box.y + box.height}
        figure.add_shape(type="rect", **ends, xref=x, yref=y, fillcolor=fill, line={"width": 0}, layer="below")
        figure.add_annotation(
            x=box.x + box.width / 2, y=box.y + box.height / 2, xref=x, yref=y, text=escaped(box.text),
            showarrow=False, font={"size": 13} | ({} if box.share is None else {"color": colours.ink(fill)}),
        )  # fmt: skip
    if panel.boxes:
        figure.add_trace(
            go.Scatter(
                x=[box.x + box.width / 2 for box in panel.boxes], y=[box.y + box.height / 2 for box in panel.boxes],
                mode="markers", marker={"size": 18, "opacity": 0}, hoverinfo="text",
                hovertext=[escaped(box.hover).replace("\n", "<br>") for box in panel.boxes], **at,
            )
        )  # fmt: skip
    for label in panel.labels:
        figure.add_annotation(
            x=label.x, y=label.y, xref=x, yref=y, text=escaped(label.text), showarrow=False, xanchor=label.align,
            yanchor="top" if label.turned else "middle", textangle=-90 if label.turned else 0,
            font={"size": label.size}, opacity=0.72 if label.faint else None,
        )  # fmt: skip
