"""A picture by plotly: interactive; hover shows tokens, positions and values.

Rows and columns of cells are places on a category axis, named by position and token, so that equal tokens stay apart
and hover needs no copy of the tokens per cell. Shapes and annotations use numbers there: 0 is the first row or column.
Text has no colour of its own, so that templates can be exchanged.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import colours
from .errors import needed
from .layout import LINE, ROW, Box, Layout, column_widths, has_labels, laid_out, titled, turned
from .parts import Parts
from .picture import Axis, Cells, Curves, Picture, Scale, Table
from .plotly_shapes import draw_shapes
from .plotly_text import GREY, escaped

TABLE_LIGHT = ("#1b1f27", "#dbe3ee", "#ffffff", "#d0d7e2")  # ink, header, cells, lines
TABLE_DARK = ("#e8ebf0", "#27313f", "#161b22", "#323c4a")
DASHES = {"sure": "solid", "possible": "dot", "predicted": "solid"}


def draw(picture: Picture) -> Any:
    """A go.Figure."""
    go, templates = needed("plotly.graph_objects"), needed("plotly.io").templates
    layout, figure = laid_out(picture), Parts()
    dark = "dark" in str(templates.default)
    margin = _margins(layout)
    figure.update_layout(
        width=layout.width,
        height=layout.height,
        margin=dict(zip("ltrb", margin, strict=True)) | {"autoexpand": False},
        font={"size": 11},
        plot_bgcolor="rgba(0,0,0,0)",
        modebar_remove=["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],  # they hide the title
    )
    for number, panel in enumerate(picture.panels):
        box = layout.panels[number]
        if isinstance(panel, Cells):
            _draw_cells(figure, go, picture, layout, number, panel)
        elif isinstance(panel, Curves):
            _draw_curves(figure, go, picture, layout, number, panel)
        elif isinstance(panel, Table):
            x, y = _domain(layout, box)
            figure.add_trace(_table(go, panel, dark).update(domain={"x": x, "y": y}))
        else:
            x, y = _axes(number)
            across, down = _domain(layout, box)
            hidden = {"visible": False, "fixedrange": True}
            axes = {
                _layout_name(x): {"anchor": y, "domain": across, "range": [0, panel.width]} | hidden,
                _layout_name(y): {"anchor": x, "domain": down, "range": [panel.height, 0]} | hidden,
            }
            figure.update_layout(axes)
            draw_shapes(figure, go, panel, x, y, _palette(picture, True, dark))
        if panel.title:
            _text(figure, layout, box.x + box.width / 2, box.y - 4, panel.title, size=12, yanchor="bottom")
    for number, scale in enumerate(picture.scales):
        figure.update_layout({_coloraxis(number): _colours(picture, layout, number, scale, dark)})
    y = 7.0
    for lines, size, step in ((layout.title, 14, 22), (layout.notes, 11, 16)):
        for line in lines:
            bold = f"<b>{escaped(line)}</b>" if size == 14 else escaped(line)
            _text(figure, layout, 10, y, bold, size=size, yanchor="top", xanchor="left", raw=True, faint=size == 11)
            y += step
    if any(isinstance(panel, Cells) and panel.links for panel in picture.panels):
        place = {"x": 10 / layout.width, "xref": "container", "xanchor": "left", "yref": "container"}
        place |= {"y": 1 - layout.heading / layout.height}
        figure.update_layout(legend={"orientation": "h", "yanchor": "top"} | place)
    return figure.figure(go)


def _margins(layout: Layout) -> tuple[float, float, float, float]:
    left = min(box.x for box in layout.panels)
    top = min(box.y for box in layout.panels)
    right = layout.width - max(box.x + box.width for box in layout.panels)
    return left, top, right, layout.height - max(box.y + box.height for box in layout.panels)


def _domain(layout: Layout, box: Box) -> tuple[list[float], list[float]]:
    """A box in parts of the area inside the margins, from its lower left corner."""
    left, top, right, bottom = _margins(layout)
    width, height = layout.width - left - right, layout.height - top - bottom
    x, y = (box.x - left) / width, 1 - (box.y - top) / height
    x_end, y_end = x + box.width / width, y - box.height / height
    return [max(0.0, x), min(1.0, x_end)], [max(0.0, y_end), min(1.0, y)]


def _text(
    figure: Parts, layout: Layout, x: float, y: float, text: str, *, size: int, raw: bool = False, faint: bool = False,
    xanchor: str = "center", yanchor: str,
) -> None:  # fmt: skip
    (px, _), (_, py) = _domain_of_point(layout, x, y)
    text = text if raw else escaped(text).replace("\n", "<br>")
    figure.add_annotation(
        x=px, y=py, xref="paper", yref="paper", xanchor=xanchor, yanchor=yanchor, text=text, showarrow=False,
        font={"size": size}, opacity=0.72 if faint else None, align="left" if xanchor == "left" else "center",
    )  # fmt: skip


def _domain_of_point(layout: Layout, x: float, y: float) -> tuple[list[float], list[float]]:
    left, top, right, bottom = _margins(layout)
    px, py = (x - left) / (layout.width - left - right), 1 - (y - top) / (layout.height - top - bottom)
    return [px, px], [py, py]


def _axes(number: int) -> tuple[str, str]:
    """The names of a panel's axes: ("x2", "y2")."""
    return f"x{number + 1 if number else ''}", f"y{number + 1 if number else ''}"


def _layout_name(axis: str) -> str:
    return f"{axis[0]}axis{axis[1:]}"


def _coloraxis(number: int) -> str:
    return f"coloraxis{number + 1 if number else ''}"


def _colours(picture: Picture, layout: Layout, number: int, scale: Scale, dark: bool) -> dict[str, Any]:
    """A coloraxis, with its bar where it has one."""
    box, found = layout.bars[number], {"cmin": scale.lowest, "cmax": scale.limit, "showscale": False}
    palette = _palette(picture, scale.diverging, dark)
    found["colorscale"] = [[n / (len(palette) - 1), colour] for n, colour in enumerate(palette)]
    if box is None:
        return found
    x, y = _domain(layout, box)
    height = layout.height - sum(_margins(layout)[1::2])
    (px, _), _ = _domain_of_point(layout, box.x, 0)
    bar = {"title": {"text": escaped(scale.name), "side": "right"}, "x": px, "xanchor": "left", "xpad": 0}
    bar |= {"y": y[1], "yanchor": "top", "ypad": 0, "len": box.height / height, "thickness": box.width}
    bar |= {"outlinewidth": 0, "nticks": max(2, min(6, int(box.height / 20)))}
    if scale.bar == "common":
        ends = [scale.lowest, 0, scale.limit] if scale.diverging else [0, scale.limit]
        names = ["−max", "0", "max"] if scale.diverging else ["0", "max"]
        bar |= {"tickmode": "array", "tickvals": ends, "ticktext": names}
    return found | {"showscale": True, "colorbar": bar}


def _palette(picture: Picture, diverging: bool, dark: bool) -> Sequence[str]:
    """The colours of a map, from lowest to highest."""

    def named(name: str) -> Sequence[str]:
        known = needed("plotly.colors")
        found = known.sample_colorscale(known.get_colorscale(name), 33, colortype="tuple")
        return ["#" + "".join(f"{round(255 * channel):02x}" for channel in one) for one in found]

    return colours.chosen(picture.look.cmap, diverging, dark, named)


def _draw_cells(figure: Parts, go: Any, picture: Picture, layout: Layout, number: int, panel: Cells) -> None:
    x, y = _axes(number)
    domain, cell = _domain(layout, layout.panels[number]), layout.cells[number]
    heading = f"<extra>{escaped(panel.title).replace(chr(10), ', ')}</extra>" if panel.title else "<extra></extra>"
    rows, columns = panel.rows.name or "row", panel.columns.name or "column"
    shown = "%{z:.4g}" if panel.told is None else "%{customdata:.4g}"
    figure.add_trace(
        go.Heatmap(
            z=panel.values,
            x=[escaped(place) for place in panel.columns.places],
            y=[escaped(place) for place in panel.rows.places],
            customdata=panel.told,
            coloraxis=_coloraxis(panel.scale),
            name=escaped(panel.title),
            xaxis=x,
            yaxis=y,
            xgap=1 if cell[0] >= 7 else 0,
            ygap=1 if cell[1] >= 7 else 0,
            hoverongaps=False,
            hovertemplate=f"{rows} %{{y}}<br>{columns} %{{x}}<br>{shown}{heading}",
        )
    )
    options = {
        x: _axis(
            panel.columns,
            cell[0],
            picture.labels_below(number),
            turned(panel, cell[0]),
            titled(picture, number, "columns"),
        )
        | {"anchor": y},
        y: _axis(panel.rows, cell[1], picture.labels_left(number), False, titled(picture, number, "rows"))
        | {"anchor": x, "autorange": "reversed"},
    }
    for axis, side, place in ((x, "columns", domain[0]), (y, "rows", domain[1])):
        first = next(n for n, other in enumerate(picture.panels) if getattr(other, side, None) == getattr(panel, side))
        if first != number:  # panels with the same tokens zoom together
            options[axis]["matches"] = _axes(first)["xy".index(axis[0])]
        figure.update_layout({_layout_name(axis): options[axis] | {"domain": place}})
    _fill_gaps(figure, panel, x, y)
    if panel.columns.boundary is not None:
        at, line = panel.columns.boundary - 0.5, {"color": GREY.format(0.9), "width": 1.5}
        ends = {"y0": -0.5, "y1": len(panel.rows) - 0.5}
        figure.add_shape(type="line", x0=at, x1=at, **ends, line=line, xref=x, yref=y)
    for kind, cells in panel.links:
        inner = 0.3 if kind == "predicted" else 0.46
        for place, (query, key) in enumerate(cells):
            figure.add_shape(
                type="circle" if kind == "predicted" else "rect",
                x0=key - inner, x1=key + inner, y0=query - inner, y1=query + inner, xref=x, yref=y,
                line={"color": colours.LINK, "width": 2, "dash": DASHES[kind]}, name=kind, legendgroup=kind,
                showlegend=number == 0 and place == 0,
            )  # fmt: skip


def _fill_gaps(figure: Parts, panel: Cells, x: str, y: str) -> None:
    """One grey shape for all cells without a number."""
    missing = ~np.isfinite(panel.values)
    if not missing.any():
        return
    path = []
    for row in range(len(missing)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], missing[row].astype(int), [0]])))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            left, right, top, bottom = first - 0.5, last - 0.5, row - 0.5, row + 0.5
            path.append(f"M{left},{top}H{right}V{bottom}H{left}Z")
    figure.add_shape(
        type="path", path=" ".join(path), xref=x, yref=y, layer="below", line={"width": 0},
        fillcolor=GREY.format(colours.MISSING[-1]),
    )  # fmt: skip


def _axis(axis: Axis, cell: float, labelled: bool, upwards: bool, named: bool) -> dict[str, Any]:
    shown = axis.ticks(cell, LINE) if labelled and has_labels(cell, len(axis)) else []
    places = axis.places
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [escaped(place) for place in places],
        "tickmode": "array",
        "tickvals": [escaped(places[n]) for n in shown],
        "ticktext": [escaped(axis.labels[n]) for n in shown],
        "tickangle": -90 if upwards else 0,
        "title": {"text": axis.label if named else None, "standoff": 6},
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }


def _draw_curves(figure: Parts, go: Any, picture: Picture, layout: Layout, number: int, panel: Curves) -> None:
    x, y = _axes(number)
    names = list(dict.fromkeys(line.name for p in picture.panels if isinstance(p, Curves) for line in p.lines))
    seen = {line.name for p in picture.panels[:number] if isinstance(p, Curves) for line in p.lines}
    domain = _domain(layout, layout.panels[number])
    for curve in panel.lines:
        colour, name = colours.CURVES[names.index(curve.name) % len(colours.CURVES)], escaped(curve.name)
        if curve.low is not None and curve.high is not None:
            band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            band |= {"x": curve.x, "legendgroup": name, "xaxis": x, "yaxis": y}
            figure.add_trace(go.Scatter(y=curve.high, **band))
            shade = f"rgba{(*colours.channels(colour), 0.18)}"
            figure.add_trace(go.Scatter(y=curve.low, fill="tonexty", fillcolor=shade, **band))
        figure.add_trace(
            go.Scatter(
                x=curve.x,
                y=curve.y,
                name=name,
                mode="lines+markers",
                line={"color": colour},
                marker={"size": 5},
                legendgroup=name,
                showlegend=curve.name not in seen,
                hovertemplate=f"{panel.x_name} %{{x}}<br>%{{y:.4g}}<extra>{name}</extra>",
                xaxis=x,
                yaxis=y,
            )
        )
    layers = sorted({layer for curve in panel.lines for layer in curve.x})
    last, first = number + picture.n_columns >= len(picture.panels), number % picture.n_columns == 0
    grid = {"gridcolor": GREY.format(0.2), "zeroline": False}
    axes = {
        x: {"tickvals": layers[:: max(1, -(-len(layers) // 9))], "title": {"text": panel.x_name if last else None}},
        y: {"range": list(panel.limits), "title": {"text": panel.y_name if first else None}, "showticklabels": first},
    }
    figure.update_layout(
        {
            _layout_name(x): {"anchor": y, "domain": domain[0]} | grid | axes[x],
            _layout_name(y): {"anchor": x, "domain": domain[1]} | grid | axes[y],
        }
    )


def _table(go: Any, table: Table, dark: bool) -> Any:
    align = ["right" if right else "left" for right in table.right]
    # Plotly sets cells with markup lower than those without, so all have some.
    columns = [
        [
            "<{0}>{1}</{0}>".format("b" if (row, n) in table.strong else "span", escaped(text))
            for row, text in enumerate(column)
        ]
        for n, column in enumerate(table.columns)
    ]
    trace = go.Table(
        columnwidth=column_widths(table),
        header={"values": [f"<b>{escaped(name)}</b>" for name in table.names], "align": align, "height": ROW},
        cells={"values": columns, "align": align, "height": ROW},
    )
    # Templates give tables light cells, so both are set: text and cells go together in every template.
    ink, head, paper, line = TABLE_DARK if dark else TABLE_LIGHT
    trace.header.update(fill_color=head, font_color=ink, line_color=line)
    trace.cells.update(fill_color=paper, font_color=ink, line_color=line)
    return trace
