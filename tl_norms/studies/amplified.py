"""Which pairs of tokens the feed-forward makes stronger, counted over a corpus (ICLR 2024)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from ..errors import UnknownScopeError
from ..linear.hold import Bias
from ..metrics import ff_amplification
from ..metrics.amplification import Normalize
from ..norms import scopes
from ..options import Layers
from ..results import BlockNorms
from ..storage.storable import Storable
from .engine.executors import Model
from .engine.options import BIASES, RunOptions, chosen, one_of, whole
from .engine.partial import Mergeable
from .engine.recording import layer_numbers, per_layer
from .engine.run import CorpusFacts, run
from .engine.study import Reading, Study
from .engine.tallies import Tally
from .engine.tokens import Batch
from .tables import frame

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class AmplifiedPairs(Storable):
    """Pairs of tokens among the k most amplified ones of a text, with counts.

    Attributes:
        k: pairs per text and layer
        layers: the layer numbers measured
        layer: [pair], the layer of each pair
        query, key: [pair], token ids
        query_token, key_token: [pair], the tokens ("" without a tokenizer)
        count: [pair], how often it was among the k
        mean, max: [pair], its difference of norms, after minus before the feed-forward, in these cases
        corpus: what was measured
    """

    k: int
    layers: tuple[int, ...]
    layer: np.ndarray
    query: np.ndarray
    key: np.ndarray
    query_token: tuple[str, ...]
    key_token: tuple[str, ...]
    count: np.ndarray
    mean: np.ndarray
    max: np.ndarray
    corpus: CorpusFacts

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per layer and pair of tokens, the most frequent pairs of each layer first."""
        names = ("layer", "query", "key", "query_token", "key_token", "count", "mean", "max")
        return frame({name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class _Study(Study):
    layers: tuple[int, ...] | None
    k: int
    largest: bool
    diagonal: bool
    normalize: Normalize
    bias: Bias
    sketch: int | None
    name: ClassVar[str] = "amplified-pairs"

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        options = {"bias": self.bias, "sketch": self.sketch}
        kept = per_layer(model, batch, _scopes(model), self.layers, lambda norms: self._top(norms, batch), **options)
        keys = [np.column_stack([np.full(len(ids), layer), ids]) for layer, (ids, _) in kept.items()]
        return {"pairs": Tally.of(np.concatenate(keys), np.concatenate([values for _, values in kept.values()]))}

    def _top(self, norms: BlockNorms, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [pair 2] and differences [pair] of the k strongest pairs of every text."""
        difference = ff_amplification(norms, normalize=self.normalize).difference[0].double().cpu()
        n = difference.shape[-1]
        real = batch.counted[:, :, None] & batch.mask[:, None, :]
        real = real.tril() if norms.causal else real
        real = real if self.diagonal else real & ~torch.eye(n, dtype=torch.bool)
        ids, values = [np.empty((0, 2), np.int64)], [np.empty(0)]
        for row, tokens in enumerate(batch.ids):
            pairs = real[row].nonzero()
            found = difference[row][real[row]] * (1 if self.largest else -1)
            top = found.topk(min(self.k, int((found > 0).sum()))).indices
            ids.append(tokens[pairs[top]].numpy())
            values.append(found[top].numpy() * (1 if self.largest else -1))
        return np.concatenate(ids), np.concatenate(values)


def amplified_pairs(
    model: Model,
    texts: Iterable[Any],
    *,
    k: int = 50,
    largest: bool = True,
    diagonal: bool = False,
    normalize: Normalize = None,
    layers: Layers = None,
    bias: Bias = "player",
    sketch: int | None = None,
    **options: Unpack[RunOptions],
) -> AmplifiedPairs:
    """Which pairs of tokens (query, key) the feed-forward amplifies most, and how often.

    Per text and layer the k pairs with the largest positive difference, |v_ij| after it minus |v_ij| before it, counted
    per pair of tokens over the corpus (Kobayashi et al. 2024, section 4.3; `tl_norms.metrics.ff_amplification`).

    Args:
        model: the model, or a function without arguments that makes it
        texts: an iterable of texts or token ids
        k: pairs per text and layer
        largest: False for the pairs that are weakened most: the largest negative differences
        diagonal: True to count what a token gets from itself
        normalize: as for `tl_norms.metrics.ff_amplification`
        layers: one layer, several, or None for all
        bias, sketch: as for `tl_norms.block_norms`
        **options: see `RunOptions`

    Returns:
        AmplifiedPairs: arrays [pair], sorted by layer and count.

    Raises:
        StudyInputError: no text can be measured, or k is not positive.
        UnknownScopeError: the model has no feed-forward.

    Example:
        >>> studies.amplified_pairs(model, texts, k=10).to_dataframe().head()   # doctest: +SKIP
    """
    study = _Study(
        chosen(layers),
        whole("k", k, 1),
        one_of("largest", largest, (True, False)),
        one_of("diagonal", diagonal, (True, False)),
        one_of("normalize", normalize, (None, "row", "map")),
        one_of("bias", bias, BIASES),
        None if sketch is None else whole("sketch", sketch, 1, or_none=True),
    )
    own, partial, facts = run(model, study, texts, reading=Reading(pad=False), **options)
    found: Any = partial.values["pairs"]
    order = np.lexsort((found.keys[:, 2], found.keys[:, 1], -found.count, found.keys[:, 0]))
    layer, query, key = found.keys[order].T
    tokenizer = getattr(own, "tokenizer", None)

    def words(ids: np.ndarray) -> tuple[str, ...]:
        known = {number: "" if tokenizer is None else tokenizer.decode([number]) for number in set(ids.tolist())}
        return tuple(known[number] for number in ids.tolist())

    count = found.count[order]
    return AmplifiedPairs(
        k, layer_numbers(own, study.layers), layer, query, key, words(query), words(key), count,
        found.total[order] / count, found.greatest[order], facts,
    )  # fmt: skip


def _scopes(model: nn.Module) -> list[str]:
    chain = scopes(model)
    scope = next((scope for scope in chain if scope.endswith("_ff")), None)
    if scope is None:
        raise UnknownScopeError(f"this model has no feed-forward: its chain is {', '.join(chain)}.")
    return [scope.removesuffix("_ff"), scope]
