"""Which pairs the feed-forward makes stronger: the map after it minus the map before it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import MissingExtraError, UnknownScopeError
from ..results import BlockNorms
from ..storage.storable import Storable
from .change import MetricsInputError, only_lengths

if TYPE_CHECKING:
    import pandas

Normalize = Literal["row", "map"] | None


@dataclass(frozen=True, repr=False)
class FFAmplification(Storable):
    """What the feed-forward adds to each pair.

    Attributes:
        scope: the scope that ends in the feed-forward
        layers: the layer numbers along the first axis
        before, after: the two maps, normalised as asked for, [layer batch query key]
        pairs: which pairs exist, [batch query key]: no padding, no later keys in causal models
        mask: True where a position is real, [batch pos], or None
        normalize: None, "row" or "map", see `ff_amplification`
        token_strings: what the keys of every text are called, or None
    """

    scope: str
    layers: tuple[int, ...]
    before: Float[Tensor, "layer *batch query key"]
    after: Float[Tensor, "layer *batch query key"]
    pairs: Bool[Tensor, "*batch query key"]
    mask: Tensor | None
    normalize: Normalize
    token_strings: tuple[tuple[str, ...], ...] | None = None

    @property
    def difference(self) -> Float[Tensor, "layer *batch query key"]:
        """after - before: positive where the feed-forward amplifies."""
        return self.after - self.before

    def top_pairs(
        self,
        k: int = 50,
        *,
        tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
        largest: bool = True,
        diagonal: bool = True,
    ) -> "pandas.DataFrame":
        """The k pairs of each layer that the feed-forward amplifies most, over all texts of the batch.

        Pairs that touch padding, and pairs with key > query of causal models, are never listed.

        Args:
            k: pairs per layer (the papers' tables use 50)
            tokens: the tokens of the text, or one list per text, as from `model.to_str_tokens(text)`; after
                cross-attention the target's, then the source's; those kept with this result, if left out
            largest: False for the pairs that are weakened most
            diagonal: False to leave out what a position gets from itself

        Returns:
            A table with layer, batch (if the maps have that axis), query, key, query_token and key_token (if tokens
            are given), before, after and difference; sorted by difference within each layer.

        Raises:
            MetricsInputError: fewer tokens, or texts, than the maps have.
            MissingExtraError: pandas is not installed.

        Example:
            >>> ff_amplification(maps).top_pairs(5, tokens=model.to_str_tokens(text))     # doctest: +SKIP
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("top_pairs needs pandas: pip install 'tl_norms[metrics]'") from error
        has_batch = self.before.ndim == 4
        before, after = (value.detach().cpu().double() for value in (self.before, self.after))
        if not has_batch:
            before, after = before[:, None], after[:, None]
        difference = after - before
        tokens = self.token_strings if tokens is None else tokens
        texts = None if tokens is None else _texts(tokens, difference.shape[1], difference.shape[-1])
        excluded = ~self._listed(diagonal)
        score = (difference if largest else -difference).masked_fill(excluded, -torch.inf)
        n_pairs = min(k, int((~excluded).sum()))
        rows = []
        for number, layer in enumerate(self.layers):
            for flat in score[number].flatten().topk(n_pairs).indices.tolist():
                batch, query, key = (int(index) for index in torch.unravel_index(torch.tensor(flat), score.shape[1:]))
                row: dict[str, object] = {"layer": layer, "batch": batch, "query": query, "key": key}
                if texts is not None:
                    row |= {"query_token": texts[batch][query], "key_token": texts[batch][key]}
                at = (number, batch, query, key)
                rows.append(
                    row | {"before": float(before[at]), "after": float(after[at]), "difference": float(difference[at])}
                )
        names = ["layer", "batch", "query", "key", *["query_token", "key_token"][: 2 * (texts is not None)]]
        table = pandas.DataFrame(rows, columns=[*names, "before", "after", "difference"])
        return table if has_batch else table.drop(columns="batch")

    def __repr__(self) -> str:
        normalized = {
            None: "in the units of the residual stream",
            "row": "rows sum to one",
            "map": "maps have mean one",
        }
        pairs = self._listed(True)
        difference = self.difference.detach().cpu().reshape(len(self.layers), *pairs.shape)[:, pairs]
        amplified = float((difference > 0).float().mean()) if difference.numel() else float("nan")
        shape = list(self.before.shape)
        return (
            f"FFAmplification, {len(self.layers)} layers, difference {shape}, {normalized[self.normalize]}\n"
            f"  {self.scope} minus {self.scope.removesuffix('_ff')}: {amplified:.1%} of pairs amplified"
        )

    def _listed(self, diagonal: bool) -> Tensor:
        """The pairs that exist, [batch query key], with a batch axis in any case."""
        listed = self.pairs.detach().cpu().reshape(-1, *self.pairs.shape[-2:])
        return listed if diagonal else listed & ~torch.eye(*listed.shape[-2:], dtype=torch.bool)


def ff_amplification(norms: BlockNorms, *, normalize: Normalize = None) -> FFAmplification:
    """The map after the feed-forward minus the map before it, |v_ij| after - |v_ij| before.

    Whether the paper normalises maps before it subtracts them could not be verified; both readings are here. A
    feed-forward that makes every norm larger amplifies everything unless maps are normalised.

    Args:
        norms: a result that holds the scope ending in `ff` and the one before, for instance of `ffn_maps`
        normalize: None: norms as they are. "row": each query's row sums to one in both maps, so that the difference
            is one of shares. "map": both maps have mean one over the pairs that exist, per layer and text.

    Returns:
        FFAmplification: `.difference` [layer batch query key], `.top_pairs(k, tokens=...)`. In parallel blocks the
        feed-forward reads only its own position, so that the difference is zero off the diagonal.

    Raises:
        UnknownScopeError: one of the two scopes was not computed.

    Example:
        >>> maps = tl_norms.ffn_maps(cache)                                             # doctest: +SKIP
        >>> ff_amplification(maps, normalize="row").difference[3]                       # doctest: +SKIP
    """
    only_lengths(norms, "ff_amplification")
    scope = next((scope for scope in norms.chain if scope.endswith("_ff")), None)
    if scope is None:
        raise UnknownScopeError(f"this model has no feed-forward: its chain is {', '.join(norms.chain)}.")
    before, after = norms[scope.removesuffix("_ff")], norms[scope]
    names = _names(norms, before.shape[-1])
    result = FFAmplification(scope, norms.layers, before, after, norms.pairs(scope), norms.mask, normalize, names)
    if normalize is None:
        return result
    if normalize not in ("row", "map"):
        raise MetricsInputError(f"normalize is None, 'row' or 'map', not {normalize!r}.")
    axes = (-1,) if normalize == "row" else (-2, -1)
    pairs = result._listed(True).to(before.device)
    count = 1 if normalize == "row" else pairs.sum((-2, -1), keepdim=True).reshape(*before.shape[1:-2], 1, 1)
    tiny = torch.finfo(before.dtype).tiny
    before, after = (value / (value.sum(axes, keepdim=True) / count).clamp_min(tiny) for value in (before, after))
    return replace(result, before=before, after=after)


def _names(norms: BlockNorms, n_keys: int) -> tuple[tuple[str, ...], ...] | None:
    """What keys are called: the positions' own strings, then the encoder's; None where some have none."""
    own, source = norms.token_strings, norms.source_strings
    if own is None:
        return None
    rows = own if source is None else tuple(row + other for row, other in zip(own, source, strict=True))
    rows = tuple(row[:n_keys] for row in rows)
    return rows if all(len(row) == n_keys for row in rows) else None


def _texts(tokens: Sequence, n_batch: int, n: int) -> list[Sequence[str]]:
    """One list of tokens per text, each long enough."""
    texts = [tokens] if len(tokens) and isinstance(tokens[0], str) else list(tokens)
    if len(texts) != n_batch or any(len(text) < n for text in texts):
        raise MetricsInputError(
            f"the maps have {n_batch} texts of {n} positions, tokens has {len(texts)} texts of "
            f"{[len(text) for text in texts]}. Pass the tokens the model was run with, padding included: "
            f"[model.to_str_tokens(text) for text in tokens]."
        )
    return texts
