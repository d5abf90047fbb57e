"""How much of a token comes from other tokens, by five methods (EMNLP 2021, Tables 2, 3, 5 and 6, Figure 3)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn
from typing_extensions import Unpack

from ..options import Layers
from ..plan import chain_of, chosen_scopes, reader_of
from ..results import BlockNorms
from ..storage.storable import Storable
from .categories import Categories, category_masks, token_types
from .engine.correlation import LIMIT, Pairs, Spearman, spearman
from .engine.executors import Model
from .engine.moments import Moments
from .engine.options import RunOptions, chosen, function, share_of_one, whole
from .engine.partial import Mergeable
from .engine.recording import layer_numbers, numbers, recorded
from .engine.run import CorpusFacts, run
from .engine.study import Reading, Study
from .engine.tokens import Batch, special_ids
from .ranks import Ranks, frequency_correlation, loaded
from .tables import frame, long

if TYPE_CHECKING:
    import pandas

OVERALL = "overall"
_PAPER_NAMES = {"attn": "Attn-N", "attn_res": "AttnRes-N", "attn_res_ln": "AttnResLn-N"}


@dataclass(frozen=True)
class MixingRatios(Storable):
    """Mixing ratios of a corpus, 0 to 1.

    Attributes:
        methods: "Attn-W", "Attn-N", "AttnRes-W", "AttnRes-N" and, in post-norm models, "AttnResLn-N"
        mean, max, min: method -> over all pairs of token and layer
        layers: the layer numbers
        types: "overall", then the token types
        by_layer: [type method layer]; per text the mean over its tokens of the type, then the mean over texts
        depth: method -> Spearman of the overall ratio of a layer and its depth
        frequency, frequency_without_special: method -> Spearman of frequency rank and the ratio of a token, mean over
            layers; empty if tokens were masked
        corpus: what was measured
    """

    methods: tuple[str, ...]
    mean: dict[str, float]
    max: dict[str, float]
    min: dict[str, float]
    layers: tuple[int, ...]
    types: tuple[str, ...]
    by_layer: np.ndarray
    depth: dict[str, float]
    frequency: dict[str, Spearman]
    frequency_without_special: dict[str, Spearman]
    corpus: CorpusFacts

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per method: mean, max, min, Spearman with depth and with frequency rank (nan with masked tokens)."""
        columns: dict[str, Any] = {"method": self.methods}
        for name in ("mean", "max", "min", "depth"):
            columns[name] = [getattr(self, name)[method] for method in self.methods]
        for name in ("frequency", "frequency_without_special"):
            found = getattr(self, name)
            columns[name] = [found[method].rho if found else float("nan") for method in self.methods]
        return frame(columns)

    def layers_to_dataframe(self) -> "pandas.DataFrame":
        """One row per token type, method and layer: mixing_ratio."""
        return long({"type": self.types, "method": self.methods, "layer": self.layers}, {"mixing_ratio": self.by_layer})


@dataclass(frozen=True)
class _Study(Study):
    layers: tuple[int, ...] | None
    types: Categories
    exact_pairs: int
    with_frequency: bool
    name: ClassVar[str] = "mixing-ratio"

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        norms = recorded(model, batch, None, self.layers, "mixing_ratio").norms
        by_method = ratios(norms)
        values = np.stack(list(by_method.values()))  # [method layer batch query]
        counted = batch.counted.numpy()
        found: dict[str, Mergeable] = {"all": Moments.of(values[..., counted].reshape(len(values), -1))}
        kinds = category_masks(self.types, getattr(model, "tokenizer", None), batch)
        for kind, where in [(OVERALL, counted), *((f"type {kind}", where & counted) for kind, where in kinds.items())]:
            n = where.sum(1)
            found[kind] = Moments.of((values * where).sum(-1) / np.maximum(n, 1), n > 0)  # [method layer]
        if self.with_frequency:
            ids = batch.ids.numpy()[counted]
            for method, ratio in zip(by_method, values.mean(1), strict=True):
                found[f"tokens {method}"] = Pairs.of(ids, ratio[counted], limit=self.exact_pairs, discrete=True)
        return found


def ratios(norms: BlockNorms) -> dict[str, np.ndarray]:
    """method -> mixing ratios [layer batch query], by weights and by norms."""
    found = {"Attn-W": numbers(norms.attention_mixing_ratio())}
    for scope in norms.scopes:
        if scope == "attn_res":
            found["AttnRes-W"] = numbers(norms.attention_mixing_ratio(residual=True))
        found[_PAPER_NAMES.get(scope, scope)] = numbers(norms.mixing_ratio(scope))
    return found


def mixing_ratio(
    model: Model,
    texts: Iterable[Any],
    *,
    ranks: Ranks = "corpus",
    types: Categories = token_types,
    mask_tokens: float | None = None,
    seed: int = 0,
    layers: Layers = None,
    exact_pairs: int = LIMIT,
    **options: Unpack[RunOptions],
) -> MixingRatios:
    """Mixing ratios over a corpus: r_i = |sum_{j≠i} v_ij| / (|sum_{j≠i} v_ij| + |v_ii|), by weights and by norms.

    Kobayashi et al. 2021: residual connection and layer norm keep far more of the token itself than weights suggest.
    The paper masks 12 % of the tokens (`mask_tokens=0.12`) for ratios, and none for the correlation with frequency.

    Args:
        model: the model, or a function without arguments that makes it
        texts: an iterable of texts or token ids
        ranks: "corpus" to count this corpus; a file with lines `rank count token_id`; or token id -> rank
        types: (tokenizer, ids) -> a name per token; special tokens by name and "other" by default.
            With `resume` it must be possible to tell it from others: by code and values, or a string `version`
        mask_tokens: share of the tokens of each text, special ones aside, that the mask token replaces (at least one)
        seed: of the choice of these tokens, which depends on the number of the text and on nothing else
        layers: one layer, several, or None for all
        exact_pairs: up to this many tokens the correlation with frequency is exact; above it ratios are binned
        **options: see `RunOptions`

    Returns:
        MixingRatios: `.mean["AttnResLn-N"]`, `.by_layer` [type method layer], `.frequency["AttnRes-N"].rho`, ...

    Raises:
        StudyInputError: no text can be measured, mask_tokens is no share, or the tokenizer has no mask token.

    Example:
        >>> studies.mixing_ratio(model, texts, mask_tokens=0.12).to_dataframe()     # doctest: +SKIP
    """
    share = None if mask_tokens is None else share_of_one("mask_tokens", mask_tokens)
    known = loaded(ranks)
    named = function("types", types, "of the tokenizer and the ids of a text that gives a name per token")
    study = _Study(chosen(layers), named, whole("exact_pairs", exact_pairs, 0), share is None)
    reading = Reading(mask_tokens=share, seed=whole("seed", seed))
    own, partial, facts = run(model, study, texts, reading=reading, **options)
    found: dict[str, Any] = partial.values
    methods = method_names(own)
    kinds = sorted(name for name in found if name.startswith("type "))
    by_layer = np.stack([found[kind].mean for kind in [OVERALL, *kinds]])
    numbers_of = layer_numbers(own, study.layers)
    special = tuple(special_ids(getattr(own, "tokenizer", None)))
    tokens = {method: found[f"tokens {method}"] for method in methods} if share is None else {}

    def by_method(values: np.ndarray) -> dict[str, float]:
        return dict(zip(methods, values.tolist(), strict=True))

    return MixingRatios(
        methods=methods,
        mean=by_method(found["all"].mean),
        max=by_method(found["all"].max),
        min=by_method(found["all"].min),
        layers=numbers_of,
        types=(OVERALL, *(kind.removeprefix("type ") for kind in kinds)),
        by_layer=by_layer,
        depth={method: spearman(numbers_of, row).rho for method, row in zip(methods, by_layer[0], strict=True)},
        frequency={method: frequency_correlation(pairs, known) for method, pairs in tokens.items()},
        frequency_without_special={m: frequency_correlation(pairs, known, special) for m, pairs in tokens.items()},
        corpus=facts,
    )


def method_names(model: nn.Module) -> tuple[str, ...]:
    """The methods that this model's attention block has, in the order they are measured in."""
    found = ["Attn-W"]
    for scope in chosen_scopes(None, chain_of(reader_of(model))):
        found += ["AttnRes-W"] * (scope == "attn_res") + [_PAPER_NAMES.get(scope, scope)]
    return tuple(found)
