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
from .methods.package import shared_runs
from .metrics import METRICS, Metric, Scored
from .removals import Replacement, Subsets
from .running import counted, device_of, is_causal
from .soft import SoftSubsets
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
        rows = [row for row in batch.windows if isinstance(row, _Row)]
        found = [self._one(model, row) for row in rows]
        index = np.array([[row.index, 0] for row in rows])
        values, facts, costs = (np.stack(part) for part in zip(*found, strict=True))
        return {"values": Rows(index, values), "facts": Rows(index, facts), "costs": Rows(index, costs)}

    def _one(self, model: nn.Module, row: _Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values [column cell], facts, costs [method 3] of one example."""
        names = [name for name, _ in self.tasks]
        target = Target(row.example.good, row.example.bad, probe=dict(self.tasks)[row.task])
        view = _View(self, model, row.example, target)
        tokens = torch.tensor([row.example.tokens], device=device_of(model))
        values, costs = [], []
        with shared_runs():
            for method in self.methods:
                with counted(model) as passes:
                    scores = self._scores(method, model, tokens, target)
                costs.append((passes.forward, passes.backward, passes.seconds))
                values += [[view.measured(one, cell) for cell in self.cells] for one in scores]
        full = view.full
        facts = np.array([names.index(row.task), full, full > 0, len(view.places)], np.float64)
        return np.array(values), facts, np.array(costs, np.float64)

    def _scores(
        self, method: Method, model: nn.Module, tokens: Tensor, target: Target
    ) -> Float[np.ndarray, "draw pos"]:
        """Scores, nan where the method fails on this example.

        Raises:
            MethodOutputError: the wrong number of scores, which no example can be blamed for.
        """
        try:
            return explained(method, model, tokens, target)
        except MethodOutputError as error:
            if "expected one number per position" in str(error):
                raise
        except TLNormsError:
            pass
        return np.full((method.draws, tokens.shape[1]), np.nan)


def removable(model: nn.Module, example: Example) -> Int[np.ndarray, " removable"]:
    """Positions that may be removed: no special tokens, and not the last one of a decoder, which predicts."""
    special = special_ids(getattr(model, "tokenizer", None))
    n = len(example.tokens) - (1 if is_causal(model) else 0)
    return np.array([place for place in range(n) if example.tokens[place] not in special], np.int64)


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

    def _sets(self, removal: str) -> Subsets | None:
        if removal not in self._subsets:
            other = self._example.counterfactual
            self._subsets[removal] = (
                None
                if removal == "swap" and other is None
                else Subsets(
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
        def on_places(kept: np.ndarray) -> np.ndarray:
            whole = np.ones((len(kept), len(self._example.tokens)), bool)
            whole[:, self.places] = kept
            return f(whole)

        return on_places

    def _soft(self, keep: Float[np.ndarray, "sets removable"]) -> Float[np.ndarray, " sets"]:
        judge, seed = self._judge, int(np.random.default_rng([self._judge.seed, *self._example.tokens]).integers(2**31))
        f = SoftSubsets(self._model, self._tokens, self._target, judge.replacement, judge.soft_draws, seed)
        whole = np.ones((len(keep), len(self._example.tokens)))
        whole[:, self.places] = keep
        return f(whole)
