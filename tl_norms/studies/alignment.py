"""Word alignment by weights and by norms of cross-attention over a corpus (EMNLP 2020, section 5)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np
from torch import nn
from typing_extensions import Unpack

from ..alignment.errors import AlignmentInputError
from ..alignment.extraction import SETTINGS, Setting, WordAlignments, checked_settings, extract
from ..alignment.forcing import check_translates, cross_maps, decoder_input, encoded_pair, misfit
from ..alignment.links import GoldLinks, check_range, link_set
from ..alignment.pairs import EncodedPair, SentencePair, as_pair
from ..options import Layers
from .engine.corpus import Item, Made
from .engine.executors import Model
from .engine.moments import Moments
from .engine.options import RunOptions, chosen, one_of
from .engine.partial import Mergeable
from .engine.recording import layer_numbers, numbers
from .engine.run import run
from .engine.study import Reading, Study
from .engine.tallies import Totals
from .engine.tokens import Batch, Window
from .error_rates import Alignments
from .errors import StudyInputError, UnfitTextError

_MISSING: Any = object()


@dataclass(frozen=True)
class _Pair:
    """A sentence pair and its gold links, sorted so that it prints alike in every process."""

    pair: SentencePair | EncodedPair
    sure: tuple[tuple[int, int], ...]
    possible: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _PairWindow(Window):
    pair: EncodedPair | None = None
    gold: GoldLinks | None = None

    @property
    def size(self) -> int:
        return len(self.ids) if self.pair is None else self.pair.size


@dataclass(frozen=True)
class _Study(Study):
    layers: tuple[int, ...] | None
    settings: tuple[Setting, ...]
    end_of_sentence: bool
    source_prefix: str
    name: ClassVar[str] = "alignment"

    def check(self, model: nn.Module) -> None:
        check_translates(model)

    def windows(self, model: nn.Module, item: Item, reading: Reading) -> list[Window]:
        given = item.content
        try:
            pair = encoded_pair(model, given.pair, source_prefix=self.source_prefix)
        except AlignmentInputError as error:
            reason = str(error).removeprefix("the pair: ").split(". ")[0].rstrip(".")
            raise UnfitTextError(f"cannot be read ({reason})") from None
        if problem := misfit(model, pair):
            raise UnfitTextError(problem)
        ids = (*pair.source, *pair.target)
        gold = GoldLinks(frozenset(given.sure), frozenset(given.possible))
        return [_PairWindow(item.index, 0, ids, (True,) * len(ids), pair=pair, gold=gold)]

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        rows = [row for row in batch.windows if isinstance(row, _PairWindow)]
        pairs = [row.pair for row in rows if row.pair is not None]
        golds = [row.gold for row in rows if row.gold is not None]
        maps = cross_maps(model, pairs, self.layers)
        found = extract(maps, pairs, settings=self.settings, end_of_sentence=self.end_of_sentence)
        lengths = numbers(maps.head_norms).swapaxes(1, 2)  # [layer head pair query key]
        real = np.zeros((len(pairs), *lengths.shape[-2:]), bool)
        for row, pair in enumerate(pairs):
            real[row, : len(decoder_input(model, pair)), : len(pair.source)] = True
        n_sure = np.array(sum(len(gold.sure) for gold in golds), np.int64)
        return {
            "counts": Totals(np.stack([_counts(found, setting, golds) for setting in self.settings])),
            "sure": Totals(n_sure[None]),
            "norms": Moments.of(lengths.reshape(*lengths.shape[:2], -1), real.ravel()),
        }


def alignment(
    model: Model,
    pairs: Iterable[Any],
    gold: Iterable[Any],
    *,
    layers: Layers = None,
    settings: Sequence[Setting] | Setting = SETTINGS,
    end_of_sentence: bool = True,
    source_prefix: str = "",
    **options: Unpack[RunOptions],
) -> Alignments:
    """Alignment error rate of every layer and head of a translation model, by attention weights and by norms.

    Kobayashi et al. 2020, section 5: |sum_h alpha f(x)| finds word alignments that the weights miss. The decoder reads
    the given targets; each target word is linked to the source word of greatest weight or norm
    (`tl_norms.alignment.extract`), and the links of all sentences are compared with the gold standard.

    Args:
        model: an encoder-decoder, or a function without arguments that makes it
        pairs: (source, target), each a string of words with blanks between them or a list of words; or EncodedPair
        gold: the gold links of each pair, as `tl_norms.alignment.read_gold` gives them, or sets of sure links
        layers: one layer of the decoder, several, or None for all
        settings: "AWO" (the step that predicts a piece), "AWI" (the step that reads it), or both
        end_of_sentence: let the source's special tokens compete; a target word that chooses one has no link
        source_prefix: put before every source, belonging to no word: a task or a language code
        **options: see `RunOptions`; pairs are neither cut nor windowed, those that do not fit are left out

    Returns:
        Alignments: `.aer` [setting method layer], `.head_aer` [setting method layer head], `.to_dataframe()`, ...

    Raises:
        AlignmentInputError: as many gold links as pairs are needed, within range; the model is no encoder-decoder.
        StudyInputError: no pair can be measured, or a bad option.

    Example:
        >>> gold = tl_norms.alignment.read_gold("alignment.talp", one_based=True)       # doctest: +SKIP
        >>> studies.alignment(model, pairs, gold).summary_to_dataframe()                # doctest: +SKIP
    """
    for name in ("max_length", "stride"):
        if options.get(name) is not None:
            raise StudyInputError(f"{name} is {options[name]}, but sentence pairs are not cut: leave it out.")  # type: ignore[literal-required]
    if not isinstance(source_prefix, str):
        raise StudyInputError(f"source_prefix is {type(source_prefix).__name__}; expected a string.")
    ends = one_of("end_of_sentence", end_of_sentence, (True, False))
    study = _Study(chosen(layers), checked_settings(settings), ends, source_prefix)
    own, partial, facts = run(model, study, _Pairs(pairs, gold), **options)
    found: dict[str, Any] = partial.values
    return Alignments(
        settings=study.settings,
        layers=layer_numbers(own, study.layers),
        counts=found["counts"].values,
        n_sure=int(found["sure"].values[0]),
        mean_norms=found["norms"].mean,
        corpus=facts,
    )


class _Pairs:
    """Pairs and gold links together, so that a file to resume from knows both."""

    def __init__(self, pairs: Iterable[Any], gold: Iterable[Any]):
        for name, given in (("pairs", pairs), ("gold", gold)):
            if isinstance(given, str | bytes) or not isinstance(given, Iterable):
                raise AlignmentInputError(
                    f"{name} is {type(given).__name__}; expected one thing per sentence pair. For files: "
                    f"tl_norms.alignment.read_pairs(path) and read_gold(path)."
                )
        self.pairs, self.gold = pairs, gold
        try:
            self._check(len(pairs), len(gold))  # type: ignore[arg-type]
        except TypeError:  # one of them is a generator: then it shows at the end
            pass

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]  a TypeError says it to the caller

    def __iter__(self) -> Iterator[Made]:
        for number, (thing, links) in enumerate(zip_longest(self.pairs, self.gold, fillvalue=_MISSING)):
            if thing is _MISSING or links is _MISSING:
                self._check(number + (thing is not _MISSING), number + (links is not _MISSING), "at least ")
            name = f"pair {number}"
            pair = as_pair(thing, name)
            gold = links if isinstance(links, GoldLinks) else GoldLinks(link_set(links, name))
            n_source, n_target = (
                (pair.n_source or 0, pair.n_target or 0)
                if isinstance(pair, EncodedPair)
                else (len(pair.source), len(pair.target))
            )
            check_range(gold.possible, n_source, n_target, name)
            yield Made(name, _Pair(pair, tuple(sorted(gold.sure)), tuple(sorted(gold.possible))))

    def _check(self, n_pairs: int, n_gold: int, least: str = "") -> None:
        if n_pairs != n_gold:
            raise AlignmentInputError(
                f"there are {least}{n_pairs} sentence pairs and {least}{n_gold} sets of gold links; expected one set "
                f"per pair, empty where a pair has none."
            )


def _counts(found: WordAlignments, setting: Setting, golds: Sequence[GoldLinks]) -> np.ndarray:
    """Links predicted, sure ones and possible ones among them, summed over pairs, [method layer 1+head 3]."""
    total: Any = 0
    for choices, gold in zip(found.choices[setting], golds, strict=True):
        linked, words = choices >= 0, np.arange(choices.shape[-1])
        counts = [linked.sum(-1)]
        for links in (gold.sure, gold.possible):
            table = np.zeros((max([choices.max(initial=0), *(s for s, _ in links)]) + 1, len(words)), bool)
            for source, target in links:
                table[source, target] = True
            counts.append((linked & table[np.maximum(choices, 0), words]).sum(-1))
        total = total + np.stack(counts, -1)
    return total.astype(np.int64)
