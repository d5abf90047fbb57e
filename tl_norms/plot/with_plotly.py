"""Figures by plotly, to look into: hover shows tokens, positions and value.

Rows and columns are places on a category axis, named by position and token, so that equal tokens stay apart and hover
needs no copy of the tokens per cell. Shapes and annotations may use numbers there: 0 is the first row or column.
"""

from typing import Any

from .errors import needed
from .spec import Axis, Lines, Maps, Panel, Table

SEQUENTIAL, DIVERGING = "Viridis", "RdBu_r"
LINE = 11  # pixels that a label needs
WIDEST = 1080  # pixels of all panels of a row
SMALLEST = 60  # pixels of a panel below which it gets no labels
LINKS = {"sure": ("#ff2d6f", "solid"), "possible": ("#ff2d6f", "dot"), "predicted": ("#ff2d6f", "solid")}


def draw_maps(maps: Maps) -> Any:
    """A go.Figure: one heatmap trace per panel, one coloraxis per scale."""
    go, subplots = needed("plotly.graph_objects"), needed("plotly.subplots")
    wide = [max(len(maps.panels[n].columns) for n in _column(maps, column)) for column in range(maps.n_columns)]
    high = [max(len(maps.panels[n].rows) for n in _row(maps, row)) for row in range(maps.n_rows)]
    labels = max(len(label) for panel in maps.panels for label in (*panel.rows.labels, *panel.columns.labels))
    labels = 8 + 6.5 * labels
    across = 78 if len(maps.scales) > 1 else 16
    room = WIDEST - across * (maps.n_columns - 1)
    cell = max(1.5, min(30, 300 / max(*wide, *high), room / sum(wide)))
    repeated = any(maps.has_labels_below(n) for n in range((maps.n_rows - 1) * maps.n_columns) if n in _inner(maps))
    down = 34 + (labels if repeated else 0)
    width = sum(wide) * cell + across * (maps.n_columns - 1)
    height = sum(high) * cell + down * (maps.n_rows - 1)
    there = [[row * maps.n_columns + column < len(maps.panels) for column in range(maps.n_columns)]
             for row in range(maps.n_rows)]  # fmt: skip
    figure = subplots.make_subplots(
        rows=maps.n_rows,
        cols=maps.n_columns,
        specs=[[{} if one else None for one in row] for row in there],
        column_widths=wide,
        row_heights=high,
        horizontal_spacing=across / width if maps.n_columns > 1 else 0,
        vertical_spacing=down / height if maps.n_rows > 1 else 0,
        subplot_titles=[_escaped(panel.title) for panel in maps.panels],
    )
    for number, panel in enumerate(maps.panels):
        _draw_panel(figure, go, maps, number, panel, cell)
    left, right, top = labels + 22, 92, 40
    bottom = labels + 26
    for number, scale in enumerate(maps.scales):
        x, y, length = _beside(figure, maps, number)
        colorbar = {"title": {"text": scale.name, "side": "right"}, "x": x, "xanchor": "left", "xpad": 6, "y": y}
        colorbar |= {"len": length, "thickness": 10, "outlinewidth": 0, "nticks": 6}
        colours = {"cmin": scale.lowest, "cmax": scale.limit, "colorbar": colorbar}
        colours["colorscale"] = DIVERGING if scale.diverging else SEQUENTIAL
        figure.update_layout({f"coloraxis{number + 1 if number else ''}": colours})
    figure.update_annotations(font_size=12)
    figure.update_layout(
        width=max(380, width + left + right),
        height=max(240, height + top + bottom),
        margin={"l": left, "r": right, "t": top, "b": bottom},
        font={"size": 11},
    )
    if any(panel.links for panel in maps.panels):
        figure.update_layout(margin={"b": bottom + 30}, height=max(240, height + top + bottom + 30))
        figure.update_layout(legend={"orientation": "h", "y": 0.01, "yanchor": "bottom", "yref": "container", "x": 0})
    return figure


def draw_lines(lines: Lines) -> Any:
    """A go.Figure: one scatter trace per curve, and one per band."""
    go, subplots = needed("plotly.graph_objects"), needed("plotly.subplots")
    across = min(3, len(lines.panels)) if len(lines.panels) != 4 else 2
    down = -(-len(lines.panels) // across)
    figure = subplots.make_subplots(
        rows=down,
        cols=across,
        shared_xaxes=False,
        shared_yaxes=True,
        subplot_titles=[_escaped(title) for title, _ in lines.panels],
        horizontal_spacing=0.04,
        vertical_spacing=62 / (270 * down) if down > 1 else 0,
    )
    colours = dict(zip(lines.names, _colours(len(lines.names)), strict=True))
    seen: set[str] = set()
    for number, (_, curves) in enumerate(lines.panels):
        row, column = divmod(number, across)
        for curve in curves:
            name = _escaped(curve.name)
            at = {"row": row + 1, "col": column + 1}
            if curve.low is not None and curve.high is not None:
                band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
                band |= {"x": curve.x, "legendgroup": name}
                figure.add_trace(go.Scatter(y=curve.high, **band), **at)
                shade = f"rgba{tuple(int(colours[curve.name][i : i + 2], 16) for i in (1, 3, 5)) + (0.18,)}"
                figure.add_trace(go.Scatter(y=curve.low, fill="tonexty", fillcolor=shade, **band), **at)
            figure.add_trace(
                go.Scatter(
                    x=curve.x,
                    y=curve.y,
                    name=name,
                    mode="lines+markers",
                    line={"color": colours[curve.name]},
                    legendgroup=name,
                    showlegend=curve.name not in seen,
                    hovertemplate=f"{lines.x_name} %{{x}}<br>%{{y:.4g}}<extra>{name}</extra>",
                ),
                **at,
            )
            seen.add(curve.name)
        if number + across >= len(lines.panels):
            figure.update_xaxes(title_text=lines.x_name, row=row + 1, col=column + 1)
        if column == 0:
            figure.update_yaxes(title_text=lines.y_name, row=row + 1, col=1)
    layers = sorted({layer for _, curves in lines.panels for curve in curves for layer in curve.x})
    figure.update_xaxes(tickvals=layers[:: max(1, len(layers) // 12)])
    figure.update_yaxes(range=list(lines.limits))
    figure.update_annotations(font_size=12)
    width, margin = 140 + 300 * across if across > 1 else 640, {"l": 60, "r": 20, "t": 40, "b": 50}
    figure.update_layout(width=width, height=90 + 270 * down, margin=margin, font={"size": 11})
    return figure


def draw_table(table: Table) -> Any:
    """A go.Figure with one table."""
    go = needed("plotly.graph_objects")
    align = ["right" if right else "left" for right in table.right]
    longest = [max(map(len, (name, *column))) for name, column in zip(table.names, table.columns, strict=True)]
    trace = go.Table(
        columnwidth=[max(8, n) for n in longest],
        header={"values": [f"<b>{_escaped(name)}</b>" for name in table.names], "align": align, "height": 26},
        cells={"values": [list(map(_escaped, column)) for column in table.columns], "align": align, "height": 24},
    )
    # A table keeps its own light cells in every template, so its text stays dark in a dark one too.
    trace.header.update(fill_color="#dbe3ee", font_color="#1b1f27", line_color="#c2cbd8")
    trace.cells.update(fill_color="#ffffff", font_color="#1b1f27", line_color="#dfe4eb")
    rows = len(table.columns[0])
    figure = go.Figure(trace)
    width = 40 + 9 * sum(max(8, n) for n in longest)
    return figure.update_layout(width=width, height=min(800, 60 + 25 * rows), margin=dict.fromkeys("lrtb", 14))


def _draw_panel(figure: Any, go: Any, maps: Maps, number: int, panel: Panel, cell: float) -> None:
    row, column = (place + 1 for place in maps.at(number))
    at = {"row": row, "col": column}
    heading = panel.title and f"<extra>{_escaped(panel.title)}</extra>" or "<extra></extra>"
    figure.add_trace(
        go.Heatmap(
            z=panel.values,
            x=[_escaped(place) for place in panel.columns.places],
            y=[_escaped(place) for place in panel.rows.places],
            coloraxis=f"coloraxis{panel.scale + 1 if panel.scale else ''}",
            name=_escaped(panel.title),
            hoverongaps=False,
            hovertemplate=f"{panel.rows.name} %{{y}}<br>{panel.columns.name} %{{x}}<br>%{{z:.4g}}{heading}",
        ),
        **at,
    )
    figure.update_xaxes(**_axis(panel.columns, cell, maps.has_labels_below(number)), tickangle=-90, **at)
    figure.update_yaxes(**_axis(panel.rows, cell, column == 1), autorange="reversed", **at)
    axes = figure.get_subplot(**at)
    names = [axes.xaxis.plotly_name, axes.yaxis.plotly_name]
    for axis, first, name in ((axes.xaxis, _first(maps, panel, "columns"), "x"), (axes.yaxis, 0, "y")):
        if first != number:
            there = figure.get_subplot(*(place + 1 for place in maps.at(first)))
            axis.matches = (there.xaxis if name == "x" else there.yaxis).plotly_name.replace("axis", "")
    x, y = (name.replace("axis", "") for name in names)
    if panel.columns.boundary is not None:
        where = panel.columns.boundary - 0.5
        line = {"color": "#ff2d6f", "width": 1.5}
        figure.add_shape(type="line", x0=where, x1=where, y0=-0.5, y1=len(panel.rows) - 0.5, line=line, xref=x, yref=y)
    for kind, cells in panel.links:
        colour, dash = LINKS[kind]
        inner = 0.3 if kind == "predicted" else 0.46
        for place, (query, key) in enumerate(cells):
            figure.add_shape(
                type="circle" if kind == "predicted" else "rect",
                x0=key - inner, x1=key + inner, y0=query - inner, y1=query + inner, xref=x, yref=y,
                line={"color": colour, "width": 2, "dash": dash}, name=kind, legendgroup=kind,
                showlegend=number == 0 and place == 0,
            )  # fmt: skip


def _axis(axis: Axis, cell: float, labelled: bool) -> dict[str, Any]:
    shown = axis.ticks(cell, LINE) if labelled and (cell >= LINE or cell * len(axis) >= SMALLEST) else []
    places = axis.places
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [_escaped(place) for place in places],
        "tickmode": "array",
        "tickvals": [_escaped(places[n]) for n in shown],
        "ticktext": [_escaped(axis.labels[n]) for n in shown],
        "title": {"text": axis.name if labelled else None, "standoff": 6},
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }


def _first(maps: Maps, panel: Panel, side: str) -> int:
    """The first panel with the same tokens at this side: it and all the others zoom together."""
    return next(n for n, other in enumerate(maps.panels) if getattr(other, side) == getattr(panel, side))


def _beside(figure: Any, maps: Maps, scale: int) -> tuple[float, float, float]:
    """Where the colour bar of a scale stands, in parts of the plot: right of its panels, as high as they are."""
    subplots = [figure.get_subplot(*(place + 1 for place in maps.at(number))) for number in maps.members(scale)]
    low = min(subplot.yaxis.domain[0] for subplot in subplots)
    high = max(subplot.yaxis.domain[1] for subplot in subplots)
    return max(subplot.xaxis.domain[1] for subplot in subplots), (low + high) / 2, high - low


def _row(maps: Maps, row: int) -> range:
    return range(row * maps.n_columns, min((row + 1) * maps.n_columns, len(maps.panels)))


def _column(maps: Maps, column: int) -> range:
    return range(column, len(maps.panels), maps.n_columns)


def _inner(maps: Maps) -> set[int]:
    """The panels that have one below."""
    return {number for number in range(len(maps.panels)) if number + maps.n_columns < len(maps.panels)}


def _colours(n: int) -> list[str]:
    """Colours for curves that can be told apart, also without red and green (Okabe and Ito)."""
    known = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1", "#808080"]
    return [known[number % len(known)] for number in range(n)]


def _escaped(text: str) -> str:
    """Text that plotly takes for text: not as markup (`<s>` is a token), nor as a formula between dollars."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")
