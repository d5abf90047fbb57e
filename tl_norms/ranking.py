"""The strongest parts of something, as a table that prints itself."""

import html
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import MissingExtraError
from .labels import digits
from .storage.storable import Storable


@dataclass(frozen=True)
class Ranking(Storable):
    """The strongest parts, largest absolute value first; rows of names and numbers.

    Attributes:
        columns: their names
        rows: the parts
        signed: whether numbers are printed with their sign
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    signed: bool = True

    def __iter__(self):
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        return self.rows[number]

    def to_dataframe(self):
        """As a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return pandas_of().DataFrame(list(self.rows), columns=list(self.columns))

    def _cells(self) -> list[list[str]]:
        return [list(self.columns)] + [
            [self._number(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in self.rows
        ]

    def _number(self, value: float) -> str:
        return f"{value:+.4f}" if self.signed else digits(value, 4)

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[k]) for row in cells) for k in range(len(self.columns))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells
        )

    def _repr_html_(self) -> str:
        head, *rows = [[html.escape(cell) for cell in row] for row in self._cells()]
        lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
        return f"<table>{''.join(lines)}</table>"


def ranked(columns: tuple[str, ...], values: Tensor, k: int, labels) -> Ranking:
    """The k entries of largest absolute value; `labels` names an entry by its indices."""
    flat = values.flatten()
    chosen = flat.abs().topk(min(k, len(flat))).indices
    places = torch.stack(torch.unravel_index(chosen, values.shape), dim=1).tolist()
    rows = tuple((*labels(tuple(place)), float(flat[i])) for place, i in zip(places, chosen, strict=True))
    return Ranking((*columns, "value"), rows)


def pandas_of():
    """The library, where it is installed."""
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("tables need pandas: pip install pandas") from error
    return pandas
