"""Attention weights against norms, per category of source tokens (EMNLP 2020, Figures 3 and 4, Table 2)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from ..options import Layers
from ..results import BlockNorms
from ..storage.storable import Storable
from .categories import Categories, category_masks, token_categories
from .engine.correlation import LIMIT, Pairs, Spearman
from .engine.executors import Model
from .engine.moments import Moments
from .engine.options import RunOptions, chosen, function, whole
from .engine.partial import Mergeable
from .engine.recording import layer_numbers, numbers, patterns, per_layer
from .engine.run import CorpusFacts, run
from .engine.study import Study
from .engine.tokens import Batch
from .tables import frame, long

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class WeightAgainstNorm(Storable):
    """What attention weights say and what norms say about each category of source tokens.

    Attributes:
        categories: along the first axis
        layers: the layer numbers along the second
        weight: Avg α, [category layer head]: per text the sum over keys of the category, mean over queries; then the
            mean over texts (0 for texts without the category)
        weighted_norm: Avg ‖αf(x)‖, likewise
        norm: ‖f(x)‖, [category layer head]: per text the mean over its tokens of the category; then over texts with any
        spearman: category -> Spearman of α and ‖f(x)‖, pooled over all texts, layers, heads, queries and keys of the
            category (in causal models pairs with key > query do not exist)
        corpus: what was measured
    """

    categories: tuple[str, ...]
    layers: tuple[int, ...]
    weight: np.ndarray
    weighted_norm: np.ndarray
    norm: np.ndarray
    spearman: dict[str, Spearman]
    corpus: CorpusFacts

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per category, layer and head: weight, weighted_norm, norm."""
        axes = {"category": self.categories, "layer": self.layers, "head": range(self.weight.shape[2])}
        return long(axes, {name: getattr(self, name) for name in ("weight", "weighted_norm", "norm")})

    def correlations(self) -> "pandas.DataFrame":
        """One row per category: pairs, rho and the bound of its error (0: exact)."""
        found = [self.spearman[name] for name in self.categories]
        columns = {name: [getattr(one, name) for one in found] for name in ("n", "rho", "error")}
        return frame({"category": self.categories, **columns})


@dataclass(frozen=True)
class _Study(Study):
    layers: tuple[int, ...] | None
    categories: Categories
    exact_pairs: int
    name: ClassVar[str] = "weight-against-norm"

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        kinds = category_masks(self.categories, getattr(model, "tokenizer", None), batch)
        kept = per_layer(
            model, batch, ["attn"], self.layers, lambda norms: self._layer(norms, batch, kinds), maps=False
        )
        layers = kept.values()
        found: dict[str, Mergeable] = {}
        for kind, where in kinds.items():
            parts = [layer[kind] for layer in layers]
            present = where.any(1), (where & batch.counted.numpy()).any(1)
            for number, name in enumerate(("weight", "weighted_norm", "norm")):
                values = np.stack([part[number] for part in parts])  # [layer batch head]
                found[f"{name} {kind}"] = Moments.of(values.transpose(0, 2, 1), present[name == "norm"])
            pairs = parts[0][3]
            for part in parts[1:]:
                pairs = pairs.merge(part[3])
            found[f"pairs {kind}"] = pairs
        return found

    def _layer(self, norms: BlockNorms, batch: Batch, kinds: dict[str, np.ndarray]) -> dict[str, tuple]:
        """category -> weight, weighted norm and norm [batch head], and pairs."""
        values = norms.value_norms[0].double().cpu()  # [batch head key]
        queries = batch.counted.double()
        pattern = patterns(norms)[0].double().cpu() * batch.mask[:, None, None, :]
        mean = torch.einsum("bhqk,bq->bhk", pattern, queries) / queries.sum(-1).clamp_min(1)[:, None, None]
        found = {}
        for kind, where in kinds.items():
            keys = torch.from_numpy(where)
            own = (keys & batch.counted).double()
            norm = torch.einsum("bhk,bk->bh", values, own) / own.sum(-1).clamp_min(1)[:, None]
            sums = (numbers(torch.einsum("bhk,bk->bh", value, keys.double())) for value in (mean, mean * values))
            found[kind] = (*sums, numbers(norm), self._pairs(pattern, values, keys, batch.counted, norms.causal))
        return found

    def _pairs(self, pattern, values, keys, queries, causal: bool) -> Pairs:
        weights, vectors = [], []
        for row in range(len(pattern)):
            pairs = queries[row][:, None] & keys[row]
            pairs = pairs.tril() if causal else pairs
            weights.append(pattern[row][:, pairs].flatten())
            vectors.append(values[row][:, None, :].expand_as(pattern[row])[:, pairs].flatten())
        # one merge per layer, not per text: each merge sorts all cells seen so far
        return Pairs.of(torch.cat(weights), torch.cat(vectors), limit=self.exact_pairs)


def weight_against_norm(
    model: Model,
    texts: Iterable[Any],
    *,
    categories: Categories = token_categories,
    layers: Layers = None,
    exact_pairs: int = LIMIT,
    **options: Unpack[RunOptions],
) -> WeightAgainstNorm:
    """Attention weights α and norms ‖αf(x)‖ per category of source tokens, and how they correlate.

    Kobayashi et al. 2020, sections 4.2 and 4.3: special tokens and punctuation get large weights, but their
    vectors are short.

    Args:
        model: the model, or a function without arguments that makes it
        texts: an iterable of texts or token ids
        categories: (tokenizer, ids) -> a name per token; the paper's by default.
            With `resume` it must be possible to tell it from others: by code and values, or a string `version`
        layers: one layer, several, or None for all
        exact_pairs: up to this many pairs per category the correlation is exact; above it values are binned, and the
            bound of the error is part of the result
        **options: see `RunOptions`

    Returns:
        WeightAgainstNorm, arrays [category layer head]; weights are shares of 1, norms in units of the residual stream.

    Raises:
        StudyInputError: no text can be measured, or categories give the wrong number of names.

    Example:
        >>> studies.weight_against_norm(model, texts).correlations()            # doctest: +SKIP
    """
    named = function("categories", categories, "of the tokenizer and the ids of a text that gives a name per token")
    study = _Study(chosen(layers), named, whole("exact_pairs", exact_pairs, 0))
    own, partial, facts = run(model, study, texts, **options)
    kinds = sorted({name.partition(" ")[2] for name in partial.values})
    found: dict[str, Any] = partial.values

    def with_zeros(moments: Moments) -> np.ndarray:
        """The mean over all texts, those without the category counted as 0."""
        return moments.mean_ * moments.n / facts.n_windows

    return WeightAgainstNorm(
        categories=tuple(kinds),
        layers=layer_numbers(own, study.layers),
        weight=np.stack([with_zeros(found[f"weight {kind}"]) for kind in kinds]),
        weighted_norm=np.stack([with_zeros(found[f"weighted_norm {kind}"]) for kind in kinds]),
        norm=np.stack([found[f"norm {kind}"].mean for kind in kinds]),
        spearman={kind: found[f"pairs {kind}"].spearman() for kind in kinds},
        corpus=facts,
    )
