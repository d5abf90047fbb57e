"""The result of `evaluate`: every number of every example, and what can be said of methods over examples."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import csv_file, summary
from .engine import frame
from .metrics import METRICS
from .summary import Which

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Report:
    """What was measured.

    Attributes:
        tasks, methods: names
        columns: (method, draw) of every column of values, [column 2]; one draw unless a method is random
        cells: (metric, removal) of every number, removal "" where none is needed
        values: [example column cell]; nan where a metric is not defined or a method failed
        task: number of the task, [example]
        example: number within the task, [example]
        full: the target with nothing removed, [example]
        right: whether the model prefers the good continuation, [example]
        removable: positions that can be removed, [example]
        costs: rows through the model forward, backward, and seconds, [example method 3]
        refused: methods that do not work on this model, and why
        excluded: examples that are not in the result, and why
        about: model, options
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    columns: np.ndarray
    cells: tuple[tuple[str, str], ...]
    values: np.ndarray
    task: np.ndarray
    example: np.ndarray
    full: np.ndarray
    right: np.ndarray
    removable: np.ndarray
    costs: np.ndarray
    refused: tuple[tuple[str, str], ...] = ()
    excluded: tuple[tuple[str, str], ...] = ()
    about: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        wrong = int((~self.right).sum())
        return (
            f"Report({len(self.full)} examples of {', '.join(self.tasks)}, {wrong} of them wrong; "
            f"{len(self.methods)} methods, {len(self.cells)} metrics; {len(self.excluded)} examples excluded, "
            f"{len(self.refused)} methods refused)"
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The head of every column of a table: metric, removal, and which direction is better."""
        return tuple(METRICS[name].label(removal) for name, removal in self.cells)

    def to_dataframe(self, examples: Which = "right", *, relative: bool = False, seed: int = 0) -> "pandas.DataFrame":
        """One row per task, method and metric, and of all tasks together.

        Args:
            examples: those that the model gets "right", "wrong", or "all"
            relative: sums over examples divided by the sum of f(N), for metrics in units of the target
            seed: of the bootstrap

        Returns:
            Columns: task, method, metric (with its direction), removal, better ("higher" or "lower"), value (the mean
            over examples), low and high (95 % bootstrap interval), spread_low and spread_high (95 % of the means of
            single draws, of random scores), n, and failed (examples for which there is no number).

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return summary.summary(self, examples, relative, seed)

    def examples_to_dataframe(self) -> "pandas.DataFrame":
        """One row per example, method and draw, a column per metric: all that was measured."""
        return csv_file.rows_of(self)

    def to_csv(self, path: str | os.PathLike, *, digits: int | None = None) -> None:
        """All that was measured, and in a first line what was refused and excluded, the model and the options.

        Args:
            path: the file; one whose name ends in .gz is packed
            digits: significant ones of every number; None for all
        """
        csv_file.write(self, path, digits)

    @classmethod
    def from_csv(cls, path: str | os.PathLike) -> "Report":
        """What `to_csv` has stored; of a table without its first line (`examples_to_dataframe().to_csv`) the numbers.

        Raises:
            FaithfulnessInputError: the file is another table.
        """
        return cls(**csv_file.read(path))

    def costs_to_dataframe(self) -> "pandas.DataFrame":
        """One row per method: mean rows through the model per example, forward and backward, and seconds."""
        mean = np.nanmean(self.costs, axis=0)
        names = ("forward", "backward", "seconds")
        return frame({"method": list(self.methods)} | {name: mean[:, n] for n, name in enumerate(names)})

    def rankings(self, examples: Which = "right") -> "pandas.DataFrame":
        """How far rankings of methods change with the removal: Spearman of the methods' means, per metric and task."""
        return summary.rankings(self, examples)

    def differences(self, against: str, examples: Which = "right", *, seed: int = 0) -> "pandas.DataFrame":
        """Each method less another one, on the same examples, with bootstrap intervals: pooled over tasks.

        Args:
            against: the name of the other method
            examples: as for `to_dataframe`

        Returns:
            Columns: method, metric, removal, difference, low, high, n.
        """
        return summary.differences(self, against, examples, seed)

    def markdown(
        self, task: str | None = None, examples: Which = "right", *, relative: bool = False, intervals: bool = False
    ) -> str:
        """A table of methods by metrics; the best of every column is bold, random scores come last.

        Args:
            task: one task; None for all together
            examples, relative: as for `to_dataframe`
            intervals: the 95 % interval in every cell
        """
        return summary.markdown(self, task, examples, relative, intervals)

    def figure(self, examples: Which = "right", *, task: str | None = None, backend: str = "plotly") -> Any:
        """Methods by metrics with their intervals, one panel per metric and removal.

        Args:
            examples: as for `to_dataframe`
            task: one task; None for all together
            backend: "plotly" or "matplotlib"
        """
        from .figure import draw

        return draw(self, examples, task, backend)

    def to_html(self, path: str | os.PathLike) -> None:
        """One self-contained page: the figure, the table, what was left out."""
        from .report_page import write_page

        write_page(self, path)
