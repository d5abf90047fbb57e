"""Which attribution is faithful: all methods on all examples of all tasks, by every metric and removal."""

import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import TypedDict, Unpack

from ..errors import TLNormsError
from .engine import Made, Model, made, run
from .errors import FaithfulnessInputError
from .methods import Method, Methods, chosen, explained
from .metrics import chosen as chosen_metrics
from .removals import Replacement, check_removals
from .report import Report
from .running import device_of, shared_runs
from .study import Judge
from .subsets import shared_subsets
from .tasks import Task, named


class JudgeOptions(TypedDict, total=False):
    """Options of the engine, as in `tl_norms.studies.RunOptions`, where a text is an example and a chunk has 16."""

    progress: bool | None
    resume: str | os.PathLike | None
    share: tuple[int, int]
    parts: Iterable[str | os.PathLike]
    executor: Executor | None
    chunk: int


def evaluate(
    model: Model,
    tasks: str | Task | Sequence[str | Task],
    methods: Methods = None,
    metrics: Sequence[str] | None = None,
    removals: Sequence[str] | str = ("cut", "replace"),
    *,
    replacement: Replacement = "mean",
    fractions: Sequence[float] | None = None,
    limit: int | None = None,
    draws: int = 10,
    seed: int = 0,
    **options: Unpack[JudgeOptions],
) -> Report:
    """Judge attribution methods by what happens to the target when positions are removed, and by annotated evidence.

    Args:
        model: a TransformerBridge, HookedTransformer or HookedEncoder; or, with `executor=`, a function that makes it
        tasks: `Task` objects or names (`tl_norms.faithfulness.tasks.NAMES`), one or several
        methods: names, functions `(model, tokens, target) -> [pos]`, or a mapping of names to functions; None for all
            there are. Random scores are always among them.
        metrics: names in `tl_norms.faithfulness.METRICS`; None for `DEFAULT`
        removals: "cut" (nobody else attends to the position), "replace" (its embedding), "swap" (its token by the
            counterfactual's). Report at least two: rankings change with the removal.
        replacement: what "replace" puts in: "mean" of all embeddings, "zero", or a token id
        fractions: the stated shares of positions that are removed; None for 1, 2, ..., all of them
        limit: examples per task; 200 where a task is given by name
        draws: of random scores
        seed: of tasks, random scores, ties and soft draws
        **options: `progress`, `resume`, `share`, `parts`, `executor` and `chunk`, as in `tl_norms.studies.RunOptions`

    Returns:
        A Report: `.to_dataframe()`, `.markdown()`, `.figure()`, `.examples_to_dataframe()`. Examples that the model
        gets wrong are kept apart.

    Raises:
        FaithfulnessInputError: an unknown name, or no method that works on this model.
        TaskError: a task that this tokenizer cannot spell.
        MethodOutputError: a method that does not return one number per position.
        UnsupportedArchitectureError: a method asked for by name refuses this model, or positions cannot be cut.

    Example:
        >>> from tl_norms import faithfulness                                           # doctest: +SKIP
        >>> report = faithfulness.evaluate(model, ["agreement", "ioi"], limit=50)       # doctest: +SKIP
        >>> print(report.markdown())                                                    # doctest: +SKIP
    """
    if unknown := [name for name in options if name not in JudgeOptions.__annotations__]:
        raise FaithfulnessInputError(f"{unknown[0]} is no option of evaluate.")
    removals = (removals,) if isinstance(removals, str) else tuple(removals)
    check_removals(removals, replacement)
    if not removals:
        raise FaithfulnessInputError("removals is empty; expected 'cut', 'replace' or 'swap', better two of them.")
    _check_numbers(fractions, limit=limit, draws=draws, seed=seed)
    metrics = tuple(metric.name for metric in chosen_metrics(None if metrics is None else tuple(metrics)))
    own = made(model)
    given = _tasks(own, tasks, limit, seed)
    working, refused = _working(own, chosen(methods, draws, seed), given, strict=methods is not None)
    judge = Judge(
        methods=working,
        metrics=metrics,
        removals=removals,
        tasks=tuple((task.name, task.probe) for task in given),
        replacement=replacement,
        fractions=None if fractions is None else tuple(fractions),
        seed=seed,
    )
    source: Model = model if options.get("executor") is not None else own
    _, partial, facts = run(source, judge, _Examples(given), **{"chunk": 16, **options})  # type: ignore[arg-type]
    found: Any = partial.values
    numbers = _Examples(given).numbers[found["facts"].index[:, 0]]
    order = np.lexsort((numbers, found["facts"].values[:, 0]))  # the shortest were measured first
    table = found["facts"].values[order]
    return Report(
        tasks=tuple(task.name for task in given),
        methods=tuple(method.name for method in working),
        columns=np.array(judge.columns),
        cells=judge.cells,
        values=found["values"].values[order],
        task=table[:, 0].astype(np.int64),
        example=numbers[order],
        full=table[:, 1],
        right=table[:, 2] > 0,
        removable=table[:, 3].astype(np.int64),
        costs=found["costs"].values[order],
        refused=refused,
        excluded=tuple((text.name, text.reason) for text in facts.excluded)
        + tuple((f"{task.name}, {row.name}", row.reason) for task in given for row in task.excluded),
        about=_about(own, replacement, fractions, seed, given),
    )


_known: "weakref.WeakKeyDictionary[nn.Module, set[tuple]]" = weakref.WeakKeyDictionary()


def _check_numbers(fractions: object, *, limit: object, draws: object, seed: object) -> None:
    if fractions is not None:
        shares = (
            list(fractions) if isinstance(fractions, Iterable) and not isinstance(fractions, str | bytes) else [None]
        )
        if not shares or not all(isinstance(share, int | float) and 0 < share <= 1 for share in shares):
            raise FaithfulnessInputError(f"fractions is {fractions!r}; expected shares in (0, 1], or None for all.")
    for name, value, least in (("limit", limit, 1), ("draws", draws, 1), ("seed", seed, 0)):
        if value is None and name == "limit":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            wanted = "at least one example per task" if name == "limit" else f"an int, at least {least}"
            raise FaithfulnessInputError(f"{name} is {value!r}; expected {wanted}.")


class _Examples:
    """All examples as the engine takes them, the shortest first: those of one length go through the model together."""

    def __init__(self, tasks: Sequence[Task]):
        rows = [(task.name, number, example) for task in tasks for number, example in enumerate(task.examples)]
        self._rows = sorted(rows, key=lambda row: len(row[2].tokens))

    @property
    def numbers(self) -> np.ndarray:
        """The number of each example within its task."""
        return np.array([number for _, number, _ in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Made]:
        for task, number, example in self._rows:
            yield Made(f"{task} {number}", (task, example))


def _tasks(model: nn.Module, given: str | Task | Sequence[str | Task], limit: int | None, seed: int) -> list[Task]:
    parts = [given] if isinstance(given, str | Task) or not isinstance(given, Iterable) else list(given)
    if not parts:
        raise FaithfulnessInputError("no task is given; expected names or Task objects.")
    found = [named(part, model, limit or 200, seed=seed) if isinstance(part, str) else part for part in parts]
    for part in found:
        if not isinstance(part, Task):
            raise FaithfulnessInputError(f"a task is a name or a Task, not {type(part).__name__}.")
        if not part.examples:
            raise FaithfulnessInputError(f"the task {part.name!r} has no examples.")
    names = [task.name for task in found]
    if len(set(names)) < len(names):
        raise FaithfulnessInputError(f"two tasks are called {max(names, key=names.count)!r}: give each a name.")
    return [task.first(limit) for task in found]


def _working(
    model: nn.Module, methods: tuple[Method, ...], tasks: list[Task], strict: bool
) -> tuple[tuple[Method, ...], tuple[tuple[str, str], ...]]:
    """Methods that run on the first example of a task with each kind of target, and why the others do not.

    Which of the package's own methods work on a model is remembered.

    Raises:
        TLNormsError: whatever a method says that was asked for.
    """
    working, refused, known = [], [], _known.setdefault(model, set())
    kinds = {repr(task.probe): task for task in reversed(tasks)}
    first = [(task.examples[0].tokens, task.target(task.examples[0])) for task in kinds.values()]
    with shared_runs(), shared_subsets():
        for method in methods:
            key = repr(method), *kinds
            try:
                if not (method.own and key in known):
                    for tokens, target in first:
                        explained(method, model, torch.tensor([tokens], device=device_of(model)), [target])
                known.add(key)
                working.append(method)
            except TLNormsError as error:
                if strict:
                    raise
                refused.append((method.name, " ".join(str(error).split())))
    if not [method for method in working if method.draws == 1]:
        raise FaithfulnessInputError(f"no method works on this model: {refused}.")
    return tuple(working), tuple(refused)


def _about(
    model: nn.Module, replacement: Replacement, fractions: Sequence[float] | None, seed: int, tasks: list[Task]
) -> tuple[tuple[str, str], ...]:
    """What a table has to say of itself."""
    name = getattr(model.cfg, "model_name", None) or type(getattr(model, "original_model", model)).__name__
    versions = [f"{part} {version(part)}" for part in ("tl_norms", "transformer_lens", "torch")]
    found = [
        ("model", str(name)),
        ("versions", ", ".join(versions)),
        ("replacement", str(replacement)),
        ("seed", str(seed)),
    ]
    found.append(("positions removed", "1, 2, ..., all" if fractions is None else str(tuple(fractions))))
    found += [(f"accuracy of the probe of {t.name}", f"{t.probe.accuracy:.3f}") for t in tasks if t.probe is not None]
    return tuple(found)
