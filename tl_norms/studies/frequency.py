"""Whether frequent tokens have value vectors of small norm (EMNLP 2020, section 4.4)."""

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
from .engine.correlation import LIMIT, Pairs, Spearman
from .engine.executors import Model
from .engine.options import RunOptions, chosen, whole
from .engine.partial import Mergeable
from .engine.recording import numbers, per_layer
from .engine.run import CorpusFacts, run
from .engine.study import Study
from .engine.tokens import Batch, special_ids
from .ranks import Ranks, frequency_correlation, loaded
from .tables import frame

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Frequency(Storable):
    """Spearman correlations with frequency rank (rank 1 is the most frequent token).

    Attributes:
        norm: of ‖f(x)‖ per token, mean over layers and heads
        weight: of α per token, mean over layers, heads and the queries that can see it
        norm_without_special, weight_without_special: the same without special tokens
        corpus: what was measured
    """

    norm: Spearman
    weight: Spearman
    norm_without_special: Spearman
    weight_without_special: Spearman
    corpus: CorpusFacts

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per quantity and choice of tokens: n, rho and the bound of its error (0: exact)."""
        rows = [
            ("norm", True, self.norm),
            ("weight", True, self.weight),
            ("norm", False, self.norm_without_special),
            ("weight", False, self.weight_without_special),
        ]
        values = {name: [getattr(row[2], name) for row in rows] for name in ("n", "rho", "error")}
        return frame({"quantity": [row[0] for row in rows], "special_tokens": [row[1] for row in rows], **values})


@dataclass(frozen=True)
class _Study(Study):
    layers: tuple[int, ...] | None
    exact_pairs: int
    name: ClassVar[str] = "frequency"

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        layers = per_layer(model, batch, ["attn"], self.layers, lambda norms: _layer(norms, batch), maps=False)
        kept = layers.values()
        weight, norm = (np.mean([part[number] for part in kept], 0) for number in range(2))
        counted = batch.counted.numpy()
        ids = batch.ids.numpy()[counted]

        def pairs(values: np.ndarray) -> Pairs:
            return Pairs.of(ids, values[counted], limit=self.exact_pairs, discrete=True)

        return {"weight": pairs(weight), "norm": pairs(norm)}


def _layer(norms: BlockNorms, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """α and ‖f(x)‖ of each token, means over heads, [batch pos]."""
    weights = norms.attention[0].double().cpu()
    queries = batch.counted.double()[:, :, None].expand_as(weights)
    queries = queries.tril() if norms.causal else queries
    weight = (weights * queries).sum(1) / queries.sum(1).clamp_min(1)
    return numbers(torch.nan_to_num(weight)), numbers(norms.value_norms[0].mean(1))


def frequency(
    model: Model,
    texts: Iterable[Any],
    *,
    ranks: Ranks = "corpus",
    layers: Layers = None,
    exact_pairs: int = LIMIT,
    **options: Unpack[RunOptions],
) -> Frequency:
    """Spearman correlations of frequency rank with ‖f(x)‖ and with the attention a token gets.

    Over all tokens of the corpus, one pair per token (Kobayashi et al. 2020, section 4.4).

    Args:
        model: the model, or a function without arguments that makes it
        texts: an iterable of texts or token ids
        ranks: "corpus" to count this corpus; a file with lines `rank count token_id`; or token id -> rank. Tokens that
            are not listed rank after all others.
        layers: one layer, several, or None for all
        exact_pairs: up to this many tokens the correlation is exact; above it values are binned
        **options: see `RunOptions`

    Returns:
        Frequency: `.norm.rho` (0.75 for BERT-base in the paper), `.weight.rho` (0.06).

    Raises:
        StudyInputError: no text can be measured, or ranks that cannot be read.

    Example:
        >>> studies.frequency(model, texts, ranks="rank_count_ids.txt").norm    # doctest: +SKIP
    """
    known = loaded(ranks)
    study = _Study(chosen(layers), whole("exact_pairs", exact_pairs, 0))
    own, partial, facts = run(model, study, texts, **options)
    found: dict[str, Any] = partial.values
    special = tuple(special_ids(getattr(own, "tokenizer", None)))
    return Frequency(
        norm=frequency_correlation(found["norm"], known),
        weight=frequency_correlation(found["weight"], known),
        norm_without_special=frequency_correlation(found["norm"], known, special),
        weight_without_special=frequency_correlation(found["weight"], known, special),
        corpus=facts,
    )
