"""The table of `tl-norms judge` in a terminal: one block per removal, so that 80 columns hold it."""

import re
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..faithfulness import Report

_NARROW = {"comprehensiveness": "comprehen-\nsiveness", "effect correlation": "effect\ncorrelation"}
_NARROW["counterfactual effect correlation"] = "counterfactual\neffect corr."


def printed(report: "Report", examples: str, relative: bool, console: Console) -> None:
    """Numbers of `report.markdown`, without the spread of random scores; the best of a column in bold."""
    lines = report.markdown(examples=examples, relative=relative).splitlines()  # type: ignore[arg-type]
    heads, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
    removals = dict.fromkeys(removal for _, removal in report.cells)
    for number, removal in enumerate(removals):
        chosen = [at for at, cell in enumerate(report.cells, start=1) if cell[1] == removal]
        title = {"": "evidence", "swap": "removal: swap"}.get(removal, f"removal: {removal}")
        table = Table(box=None, title=title, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
        table.add_column("method", no_wrap=True)
        for at in chosen:
            table.add_column(_head(heads[at], removal), justify="right")
        if number == 0:
            table.add_column("passes", justify="right")
        for row in rows:
            passes = [row[-1].replace(" ", "")] if number == 0 else []
            table.add_row(row[0], *(_cell(row[at]) for at in chosen), *passes)
        console.print(table)
        console.print()


def _head(label: str, removal: str) -> str:
    name, _, arrow = label.replace(f" ({removal})", "").rpartition(" ")
    return f"{_NARROW.get(name, name)} {arrow}"


def _cell(text: str) -> Text:
    value = re.sub(r" \(.*\)", "", text)
    return Text(value.strip("*"), style="bold" if value.startswith("**") else "")
