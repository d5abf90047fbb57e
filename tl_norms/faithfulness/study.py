"""What is measured of one example: scores of every method, and every metric of every score."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import TLNormsError
from .engine import Batch, Item, Mergeable, Reading, Rows, Study, UnfitTextError, Window, special_ids
from .errors import MethodOutputError
from .methods import Method, explained
from .metrics import METRICS, Metric, Scored
from .removals import Replacement
from .running import counted, device_of, is_causal, shared_runs
from .soft import SoftSubsets
from .subsets import Subsets, run_asked, shared_subsets, subsets_of
from .targets import Probe, Target
from .tasks import Example

Cell = tuple[str, str]
"""A metric's name, and a removal or ""."""

FACTS = ("task", "full", "right", "removable")
COSTS = ("forward", "backward", "seconds")


@dataclass(frozen=True)
class _Row(Window):
    """One example on its way through the engine."""

    task: str = ""
    example: Example = field(default_factory=lambda: Example("", (), 0))


@dataclass(frozen=True)
class Judge(Study):
    """The options of `evaluate`, as a study of the engine.

    Attributes:
        methods: with their functions
        metrics: names
        removals: names
        tasks: their names, and the probe of each that has one
        replacement: what "replace" puts in
        fractions: see `Scored`
        seed: of ties between equal scores, and of soft draws
        soft_draws: random choices of coordinates per rate
        batch_tokens: positions per run of removals
    """

    name: ClassVar[str] = "judge"

    methods: tuple[Method, ...]
    metrics: tuple[str, ...]
    removals: tuple[str, ...]
    tasks: tuple[tuple[str, Probe | None], ...]
    replacement: Replacement = "mean"
    fractions: tuple[float, ...] | None = None
    seed: int = 0
    soft_draws: int = 8
    batch_tokens: int = 1024

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Metrics without runs once, the others for every removal they can be had with."""
        found: list[Cell] = []
        for name in self.metrics:
            needs = METRICS[name].needs
            removals = {"evidence": ("",), "removal": self.removals, "soft": ("replace",)}[needs]
            found += [(name, removal) for removal in removals]
        return tuple(found)

    @property
    def columns(self) -> tuple[tuple[int, int], ...]:
        """(method, draw) of every column of values."""
        return tuple((number, draw) for number, method in enumerate(self.methods) for draw in range(method.draws))

    def windows(self, model: nn.Module, item: Item, reading: Reading) -> list[Window]:
        """The example, if its positions can be removed."""
        task, example = item.content
        n_ctx = int(getattr(model.cfg, "n_ctx", 0) or 0)
        if 0 < n_ctx < len(example.tokens):
            raise UnfitTextError(f"has {len(example.tokens)} tokens, more than the context of {n_ctx}")
        places = removable(model, example)
        if not len(places):
            raise UnfitTextError("has no position that can be removed")
        if example.evidence and not set(example.evidence) & set(places.tolist()):
            raise UnfitTextError(f"has its evidence at {example.evidence}, where nothing can be removed")
        counted_ = tuple(place in places for place in range(len(example.tokens)))
        return [_Row(item.index, 0, example.tokens, counted_, task=task, example=example)]

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        groups: dict[tuple, list[_Row]] = {}
        for row in batch.windows:
            if isinstance(row, _Row):
                groups.setdefault(self._kind(row), []).append(row)
        rows, found = [], []
        for group in groups.values():
            step = max(1, self.batch_tokens // (4 * group[0].size))  # activations of all layers are kept meanwhile
            for start in range(0, len(group), step):
                rows += group[start : start + step]
                found += self._together(model, group[start : start + step])
        index = np.array([[row.index, 0] for row in rows])
        values, facts, costs = (np.stack(part) for part in zip(*found, strict=True))
        return {"values": Rows(index, values), "facts": Rows(index, facts), "costs": Rows(index, costs)}

    def _kind(self, row: _Row) -> tuple:
        """Examples of the same kind go through a model together."""
        probe, example = dict(self.tasks)[row.task], row.example
        return (row.size, id(probe), *((example.bad is None,) if probe is None else (example.good, example.bad)))

    def _together(self, model: nn.Module, rows: list[_Row]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Values [column cell], facts, costs [method 3] of every example of one kind."""
        names = [name for name, _ in self.tasks]
        targets = [Target(row.example.good, row.example.bad, probe=dict(self.tasks)[row.task]) for row in rows]
        tokens = torch.tensor([row.example.tokens for row in rows], device=device_of(model))
        costs = []
        scores: list[list[np.ndarray]] = [[] for _ in rows]
        with shared_runs(), shared_subsets():
            views = [_View(self, model, row.example, target) for row, target in zip(rows, targets, strict=True)]
            for method in self.methods:
                with counted(model) as passes:
                    found = self._scores(method, model, tokens, targets)
                costs.append((passes.forward, passes.backward, passes.seconds))
                for own, draws in zip(scores, found, strict=True):
                    own += list(draws)
            for removal in self.removals:  # all sets of all examples in few large runs
                asked = [view.asks(own, removal) for view, own in zip(views, scores, strict=True)]
                if together := [subsets for subsets in asked if subsets is not None]:
                    run_asked(together)
        each = np.array(costs, np.float64) / len(rows)
        measured = []
        for row, view, own in zip(rows, views, scores, strict=True):
            values = [[view.measured(one, cell) for cell in self.cells] for one in own]
            facts = [names.index(row.task), view.full, view.full > 0, len(view.places)]
            measured.append((np.array(values), np.array(facts, np.float64), each))
        return measured

    def _scores(
        self, method: Method, model: nn.Module, tokens: Tensor, targets: list[Target]
    ) -> list[Float[np.ndarray, "draw pos"]]:
        """Scores of every example, nan where the method fails on it.

        Raises:
            MethodOutputError: the wrong number of scores, which no example can be blamed for.
        """
        try:
            return explained(method, model, tokens, targets)
        except MethodOutputError as error:
            if "expected one number per position" in str(error):
                raise
        except TLNormsError:
            pass
        if len(targets) == 1:
            return [np.full((method.draws, tokens.shape[1]), np.nan)]
        rows = zip(tokens, targets, strict=True)  # one of them is to blame
        return [self._scores(method, model, row[None], [target])[0] for row, target in rows]


def removable(model: nn.Module, example: Example) -> Int[np.ndarray, " removable"]:
    """Positions that may be removed: no special tokens, and not the last one of a decoder, which predicts."""
    special = special_ids(getattr(model, "tokenizer", None))
    n = len(example.tokens) - (1 if is_causal(model) else 0)
    return np.array([place for place in range(n) if example.tokens[place] not in special], np.int64)


_ADAPTIVE = ("NAOPC",)
"""Metrics whose sets depend on what the sets before gave."""


@dataclass(frozen=True)
class _Plan:
    """Stands in for f: notes which sets a metric wants."""

    f: Subsets
    whole: Callable[[np.ndarray], np.ndarray]

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        self.f.ask(self.whole(kept))
        return np.zeros(len(kept))


class _View:
    """One example with its runs, shared by all methods: every set of positions is run once."""

    def __init__(self, judge: Judge, model: nn.Module, example: Example, target: Target):
        self._judge, self._model, self._example, self._target = judge, model, example, target
        self.places = removable(model, example)
        self._evidence = np.isin(self.places, example.evidence)
        self._ties = np.random.default_rng([judge.seed, *example.tokens]).permutation(len(self.places))
        self._subsets: dict[str, Subsets | None] = {}
        self._tokens = torch.tensor(example.tokens)

    @property
    def full(self) -> float:
        """f(N), of the plain model."""
        removal = next((name for name in self._judge.removals if name != "swap"), "replace")
        f = self._sets(removal)
        if f is None:
            return float("nan")
        return float(f(np.ones((1, len(self._example.tokens)), bool))[0])

    def measured(self, scores: Float[np.ndarray, " pos"], cell: Cell) -> float:
        name, removal = cell
        chosen = scores[self.places]
        if not np.isfinite(chosen).all():
            return float("nan")
        metric: Metric = METRICS[name]
        f = None if not removal else self._sets(removal)
        if removal and f is None:  # no counterfactual
            return float("nan")
        return metric.function(
            Scored(
                chosen,
                self._evidence,
                f=None if f is None else self._on_places(f),
                soft=self._soft if metric.needs == "soft" else None,
                fractions=self._judge.fractions,
                ties=self._ties,
            )
        )

    def asks(self, scores: list[Float[np.ndarray, " pos"]], removal: str) -> Subsets | None:
        """All sets that the metrics will want with a removal, asked for and not run; None without a counterfactual."""
        f = self._sets(removal)
        if f is None:
            return None
        f.ask(np.ones((1, len(self._example.tokens)), bool))
        plan = _Plan(f, self._whole)
        for cell in self._judge.cells:
            if cell[1] == removal and METRICS[cell[0]].needs == "removal" and cell[0] not in _ADAPTIVE:
                for one in scores:
                    chosen = one[self.places]
                    if np.isfinite(chosen).all():
                        given = Scored(chosen, self._evidence, f=plan, fractions=self._judge.fractions, ties=self._ties)
                        METRICS[cell[0]].function(given)
        return f

    def _sets(self, removal: str) -> Subsets | None:
        if removal not in self._subsets:
            other = self._example.counterfactual
            self._subsets[removal] = (
                None
                if removal == "swap" and other is None
                else subsets_of(
                    self._model,
                    self._tokens,
                    self._target,
                    removal,
                    self._judge.replacement,
                    None if other is None else torch.tensor(other),
                    self._judge.batch_tokens,
                )
            )
        return self._subsets[removal]

    def _on_places(self, f: Subsets) -> Callable[[Bool[np.ndarray, "sets removable"]], Float[np.ndarray, " sets"]]:
        return lambda kept: f(self._whole(kept))

    def _whole(self, kept: Bool[np.ndarray, "sets removable"]) -> Bool[np.ndarray, "sets pos"]:
        """Sets of removable positions as sets of positions."""
        whole = np.ones((len(kept), len(self._example.tokens)), bool)
        whole[:, self.places] = kept
        return whole

    def _soft(self, keep: Float[np.ndarray, "sets removable"]) -> Float[np.ndarray, " sets"]:
        judge, seed = self._judge, int(np.random.default_rng([self._judge.seed, *self._example.tokens]).integers(2**31))
        f = SoftSubsets(self._model, self._tokens, self._target, judge.replacement, judge.soft_draws, seed)
        whole = np.ones((len(keep), len(self._example.tokens)))
        whole[:, self.places] = keep
        return f(whole)
