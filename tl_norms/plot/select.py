"""One text of a result: its numbers without padding, and the tokens at its axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UnknownLayerError
from ..labels import Tokens
from ..results import check_whole
from .errors import PlotInputError
from .picture import Axis
from .subjects import is_cross
from .words import sentence, visible

Numbers = int | Sequence[int] | None


@dataclass(frozen=True)
class Text:
    """Which text of a result, and what stands at its positions.

    Attributes:
        batch: its number, None if the result has no batch axis
        queries: the real positions of the query axis
        query_kept, source_kept: True at real positions, [pos]; of the encoder, or None
        keys: the tokens of a longer key axis as they were given, or None
        causal: no query sees a later key of its own sequence
        own: the keys of a map are these queries first; False in cross-attention
        words: the tokens of the queries as they are, for the text in the title
    """

    batch: int | None
    queries: Axis
    query_kept: np.ndarray
    source_kept: np.ndarray | None
    keys: tuple[str, ...] | None
    causal: bool
    own: bool
    words: tuple[str, ...] = ()

    def values(self, value: Tensor) -> np.ndarray:
        """[layer *batch ...] without the batch axis, on the CPU."""
        value = value.detach().cpu()
        value = value if value.dtype in (torch.float32, torch.float64) else value.float()
        return (value if self.batch is None else value[:, self.batch]).numpy()

    def diagonal(self, value: np.ndarray) -> np.ndarray:
        """What positions get from themselves, [... query], of a map made by `map`."""
        n = min(value.shape[-2:])
        return value[..., range(n), range(n)] if self.own else value[..., :0, 0]

    def map(self, value: Tensor, diagonal: bool = True) -> np.ndarray:
        """[layer *batch (head) query key] as [layer (head) query key]: padding dropped, nan where there is no pair."""
        found = self.values(value).copy()
        n = len(self.query_kept)
        if self.own:
            square = found[..., :n]
            if self.causal:
                square[..., np.triu(np.ones((n, n), bool), 1)] = np.nan
            if not diagonal:
                square[..., np.eye(n, dtype=bool)] = np.nan
        return found[..., self.query_kept, :][..., self._kept(found.shape[-1])]

    def key_axis(self, n: int) -> Axis:
        """The keys of a map with `n` of them, padding not counted out yet."""
        own = len(self.query_kept) if self.own else 0
        if n == own:
            return Axis("key", self.queries.tokens, self.queries.positions)
        kept, keys = self._kept(n), self.keys
        source = np.ones(n - own, bool) if self.source_kept is None else self.source_kept
        if keys is None:
            raise PlotInputError(
                f"this map has {n} keys for {len(self.query_kept)} queries: pass keys=, the tokens of the encoder."
            )
        if own and len(keys) in (n, int(kept.sum())):  # both sequences were given
            keys = keys[own if len(keys) == n else len(self.queries) :]
        words = _fitted(keys, source, "keys")
        where = [str(place + own) + (f" (source {place})" if own else "") for place in np.flatnonzero(source)]
        if not own:
            return Axis("key", tuple(map(visible, words)), tuple(where))
        words = list(map(visible, words))
        return Axis("key", (*self.queries.tokens, *words), (*self.queries.positions, *where), int(kept[:own].sum()))

    def _kept(self, n: int) -> np.ndarray:
        own = self.query_kept if self.own else np.ones(0, bool)
        source = np.ones(n - len(own), bool) if self.source_kept is None else self.source_kept
        return own if n == len(own) else np.concatenate([own, source])


def one_text(
    result: Any,
    value: Tensor,
    ndim: int,
    tokens: Tokens | None,
    *,
    batch: int | None,
    keys: Tokens | None = None,
    causal: bool | None = None,
) -> Text:
    """The text of `result` that a picture shows; `value` has `ndim` axes where there is no batch axis.

    Raises:
        PlotInputError: several texts and no `batch`, a text that does not exist, no tokens where the result keeps none,
            or tokens that do not fit.
    """
    check_whole(result, "a picture")
    has_batch, own = value.ndim > ndim, not is_cross(result)
    batch = chosen_text(value.shape[1] if has_batch else None, batch)
    pairs = getattr(result, "pairs", None)
    causal = bool(getattr(result, "causal", False)) if causal is None else causal
    if isinstance(pairs, Tensor):  # an FFAmplification, which knows its pairs and nothing else
        exists: np.ndarray = (pairs if batch is None else pairs[batch]).cpu().numpy()
        n = len(exists)
        kept = np.any(exists, axis=1, keepdims=True)[:, 0]
        source_kept = np.any(exists[:, n:], axis=0, keepdims=True)[0]
        causal = not np.triu(exists[:, :n], 1).any()
    else:
        mask, source_mask = getattr(result, "mask", None), getattr(result, "source_mask", None)
        kept, source_kept = _row(mask, batch), _row(source_mask, batch)
    if kept is None:
        kept = np.ones(value.shape[-2], bool)
    given = of_text(tokens_of(result) if tokens is None else tokens, batch)
    others = None if keys is None else tuple(of_text(keys, batch))
    if others is None:  # a result that keeps its tokens keeps those of the encoder too
        kept_keys, n = getattr(result, "source_strings", None), len(kept)
        if kept_keys:
            others = tuple(of_text(kept_keys, batch))
        elif tokens is None and own and len(given) == value.shape[-1] > n:  # it names all keys, the queries first
            given, others = given[:n], tuple(given[n:])
    words = _fitted(given, kept, "tokens")
    queries = Axis("query", tuple(map(visible, words)), tuple(map(str, np.flatnonzero(kept))))
    return Text(batch, queries, kept, source_kept, others, causal, own, tuple(words))


def tokens_of(result: Any) -> Any:
    """The tokens that a result keeps.

    Raises:
        PlotInputError: it keeps none.
    """
    for name in ("token_strings", "tokens"):
        found = getattr(result, name, None)
        if isinstance(found, list | tuple) and found:
            return found
    raise PlotInputError("expected tokens, those of the text: model.to_str_tokens(text).")


def about(result: Any, words: Sequence[str]) -> str:
    """Which model and which text, as far as they are known, for the line below a title."""
    model = str(getattr(result, "model_name", None) or "").rstrip("/").rpartition("/")[2]
    text = sentence(words)
    return " · ".join(part for part in (model, f"“{text}”" if text else "") if part)


def corpus_of(result: Any) -> str:
    """How much text a study is about."""
    corpus = getattr(result, "corpus", None)
    return "" if corpus is None else f"{corpus.n_texts} texts, {corpus.n_tokens} tokens"


def chosen_text(n_texts: int | None, batch: int | None) -> int | None:
    """The number of the text to show: the only one, or the one that was asked for."""
    if n_texts is None:
        if batch not in (None, 0):
            raise PlotInputError(f"this result has no batch axis, so that there is no text {batch}: leave batch= out.")
        return None
    if batch is None:
        if n_texts > 1:
            raise PlotInputError(f"this result has {n_texts} texts: say which one, batch=0 to batch={n_texts - 1}.")
        return 0
    if isinstance(batch, bool) or not isinstance(batch, int) or not -n_texts <= batch < n_texts:
        raise PlotInputError(f"there is no text {batch!r}: this result has {n_texts}, batch=0 to batch={n_texts - 1}.")
    return batch % n_texts


def chosen_layers(result: Any, layers: Numbers) -> list[int]:
    """Where the layers asked for stand along the first axis of a result (or of anything that has `layers`)."""
    there = list(result.layers)
    wanted = there if layers is None else [layers] if isinstance(layers, int) else list(layers)
    for layer in wanted:
        if layer not in there:
            raise UnknownLayerError(f"layer {layer} is not in this result; it has {', '.join(map(str, there))}.")
    if not wanted:
        raise PlotInputError("layers is empty: name at least one, or leave it out for all.")
    return [there.index(layer) for layer in wanted]


def chosen_heads(n_heads: int, heads: Numbers) -> list[int]:
    """The heads asked for."""
    wanted = list(range(n_heads)) if heads is None else [heads] if isinstance(heads, int) else list(heads)
    if not wanted or any(not isinstance(head, int) or not 0 <= head < n_heads for head in wanted):
        raise PlotInputError(f"heads is {heads!r}: expected numbers from 0 to {n_heads - 1}, or None for all.")
    return wanted


def _row(mask: Any, batch: int | None) -> np.ndarray | None:
    if mask is None:
        return None
    found = torch.as_tensor(mask).detach().cpu().bool().numpy()
    return found.reshape(-1, found.shape[-1])[0 if batch is None else batch]


def of_text(tokens: Any, batch: int | None) -> list[str]:
    """The tokens of one text, out of a list per text."""
    found = [tokens] if isinstance(tokens, str) else list(tokens)
    if found and not isinstance(found[0], str) and isinstance(found[0], Sequence):
        if not (len(found) == 1 or (batch is not None and batch < len(found))):
            raise PlotInputError(f"tokens holds {len(found)} texts, and text {batch} is not among them.")
        found = list(found[batch or 0] if len(found) > 1 else found[0])
    for token in found:
        if not isinstance(token, str):
            raise PlotInputError(
                f"tokens are strings, found {type(token).__name__}: pass model.to_str_tokens(text), not token ids."
            )
    return found


def _fitted(tokens: Sequence[str], kept: np.ndarray, what: str) -> list[str]:
    """The tokens at real positions, from those of all positions or of the real ones."""
    if len(tokens) == len(kept):
        tokens = [token for token, real in zip(tokens, kept, strict=True) if real]
    elif len(tokens) != kept.sum():
        real = f", {int(kept.sum())} of them real" if not kept.all() else ""
        raise PlotInputError(
            f"the maps have {len(kept)} positions{real}, {what} has {len(tokens)}: pass model.to_str_tokens(text) of "
            f"the text the model was run with."
        )
    return list(tokens)
