"""Reports put together: of other tasks and examples, or of other methods on the same examples."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .errors import FaithfulnessInputError
from .report import Report

_OPTIONS = ("model", "replacement", "positions removed")
"""What reports must agree in: numbers of another model, or of other removals, are not comparable."""


def combined(reports: Sequence[Report]) -> Report:
    """Several reports as one: first those of the same methods by example, then those of other methods by column.

    Args:
        reports: with the same metrics, of one model with the same options. Those of the same methods and draws hold
            different examples; those of different methods hold the same examples. Random scores may be in all of them:
            the first are kept.

    Raises:
        FaithfulnessInputError: no report; other metrics, model or options; an example that two reports of the same
            methods have, or that a report of other methods lacks; a method that two of these have; another value of
            the target for the same example.

    Example:
        >>> stored = faithfulness.Report.from_csv("all.csv")                            # doctest: +SKIP
        >>> mine = faithfulness.evaluate(model, tasks, [my_method])                     # doctest: +SKIP
        >>> print(faithfulness.combined([stored, mine]).markdown())                     # doctest: +SKIP
    """
    if not reports:
        raise FaithfulnessInputError("no report is given; expected one or more.")
    for other in reports[1:]:
        _check_same(reports[0], other)
    groups: dict[tuple, list[Report]] = {}
    for report in reports:
        groups.setdefault((report.methods, report.columns.tobytes()), []).append(report)
    first, *others = [_by_example(group) for group in groups.values()]
    for other in others:
        first = _by_method(first, other)
    return first


def _check_same(first: Report, other: Report) -> None:
    """Raise FaithfulnessInputError for numbers that cannot stand in one table."""
    if other.cells != first.cells:
        raise FaithfulnessInputError(
            f"reports of other metrics cannot be put together: {first.labels} and {other.labels}."
        )
    one, two = dict(first.about), dict(other.about)
    for name in _OPTIONS:
        if name in one and name in two and one[name] != two[name]:
            raise FaithfulnessInputError(
                f"reports of another {name} cannot be put together: {one[name]!r} and {two[name]!r}."
            )


def _by_example(reports: list[Report]) -> Report:
    """The same methods on other examples."""
    tasks = tuple(dict.fromkeys(task for report in reports for task in report.tasks))
    numbers = [np.array([tasks.index(name) for name in report.tasks])[report.task] for report in reports]
    names = ("values", "example", "full", "right", "removable", "costs")
    parts = {name: np.concatenate([getattr(report, name) for report in reports]) for name in names}
    task = np.concatenate(numbers)
    pairs, counts = np.unique(np.stack([task, parts["example"]], 1), axis=0, return_counts=True)
    if (counts > 1).any():
        number, twice = pairs[counts > 1][0].tolist()
        raise FaithfulnessInputError(f"two reports have a task {tasks[number]!r} and its example {twice}.")
    return replace(reports[0], tasks=tasks, task=task, **parts, **_told(reports))


def _by_method(one: Report, two: Report) -> Report:
    """Other methods on the same examples, in the order of the first."""
    twice = [name for name in one.methods if name in two.methods and name != "random"]
    if twice:
        raise FaithfulnessInputError(f"two reports have a method {twice[0]!r}, and other methods beside it.")
    order = _order(one, two)
    full = two.full[order]
    far = ~np.isclose(one.full, full, rtol=1e-2, atol=1e-3 * np.abs(one.full).max(initial=0), equal_nan=True)
    if far.any():
        place = int(far.argmax())
        raise FaithfulnessInputError(
            f"example {one.example[place]} of {one.tasks[one.task[place]]!r} has the target {one.full[place]:.4g} in "
            f"one report and {full[place]:.4g} in another: these are different models, or different examples."
        )
    added = [number for number, name in enumerate(two.methods) if name not in one.methods]
    chosen = np.isin(two.columns[:, 0], added)
    renamed = np.array([[len(one.methods) + added.index(m), draw] for m, draw in two.columns[chosen].tolist()])
    return replace(
        one,
        methods=one.methods + tuple(two.methods[number] for number in added),
        columns=np.concatenate([one.columns, renamed.reshape(-1, 2)]),
        values=np.concatenate([one.values, two.values[order][:, chosen]], 1),
        costs=np.concatenate([one.costs, two.costs[order][:, added]], 1),
        **_told([one, two]),
    )


def _order(one: Report, two: Report) -> np.ndarray:
    """Where the examples of one report are in another."""
    keys = [[(r.tasks[t], e) for t, e in zip(r.task, r.example.tolist(), strict=True)] for r in (one, two)]
    places = {key: number for number, key in enumerate(keys[1])}
    if alone := sorted(set(keys[0]) ^ set(keys[1])):
        task, example = alone[0]
        raise FaithfulnessInputError(
            f"{len(alone)} examples are in one report and not in another of other methods, the first is example "
            f"{example} of {task!r}. Measure all methods on the same tasks with the same limit and seed."
        )
    return np.array([places[key] for key in keys[0]], np.int64)


def _told(reports: Sequence[Report]) -> dict[str, tuple[tuple[str, str], ...]]:
    """All that was refused, excluded and told, each once."""
    return {
        name: tuple(dict.fromkeys(entry for report in reports for entry in getattr(report, name)))
        for name in ("refused", "excluded", "about")
    }
