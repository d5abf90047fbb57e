"""The strongest sources of a position, as a table with token strings."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import UnknownOptionError, UnknownPositionError
from .linear.measure.measures import Length, Onto
from .ranking import Ranking

if TYPE_CHECKING:
    from .results import BlockNorms


def strongest(
    norms: "BlockNorms", query: str | int | None, k: int, scope: str | None, layer: int | None, row: int
) -> Ranking:
    """See `BlockNorms.top`."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UnknownOptionError(f"k is {k!r}; expected a number of sources, at least 1.")
    scope = norms.scopes[-1] if scope is None else scope
    layer = norms.layers[-1] if layer is None else layer
    if isinstance(norms.measure, Onto):
        raise UnknownOptionError(
            "these maps hold several numbers for a pair, one per direction; take the map of one: "
            "norms[scope][..., direction]."
        )
    lengths, there = norms[scope, layer], norms.pairs(scope)
    if lengths.ndim == 3:
        if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < len(lengths):
            raise UnknownPositionError(f"there is no text {row!r}: this result has {len(lengths)}, row=0 and on.")
        lengths, there = lengths[row], there[row]
    there = there.to(lengths.device)
    number = norms.layers[layer] if layer < 0 and layer not in norms.layers else layer
    names = _names(norms, lengths.shape[-1], row)
    rows: list[tuple[Any, ...]] = []
    sizes = lengths.float().abs().masked_fill(~there, -1)
    totals = sizes.clamp_min(0).sum(-1)
    own = names[norms.past : norms.past + len(lengths)]
    for position in _positions(norms, query, own, there):
        for key in sizes[position].topk(min(k, int(there[position].sum()))).indices.tolist():
            value = float(lengths[position, key])
            share = abs(value) / float(totals[position]) if float(totals[position]) else 0.0
            rows.append((number, position, own[position], key, names[key], value, share))
    rows = sorted(rows, key=lambda one: -abs(one[-2]))[:k] if query is None else rows
    measured = "norm" if isinstance(norms.measure, Length) else "value"
    columns = ("layer", "query", "query_token", "source", "source_token", measured, "share")
    return Ranking(columns, tuple(rows), norms.measure.signed)


def _names(norms: "BlockNorms", n_keys: int, row: int) -> list[str]:
    """What keys are called: their strings, or "" where there are none."""
    found = [strings[row] for strings in (norms.token_strings, norms.source_strings) if strings is not None]
    names = [name for part in found for name in part]
    own = norms.value_norms.shape[-1]
    if norms.token_strings is None:
        names = [""] * own + names
    return (names + [""] * n_keys)[:n_keys]


def _positions(norms: "BlockNorms", query: str | int | None, names: list[str], there: Tensor) -> list[int]:
    """The positions that a query means."""
    real = there.any(-1).nonzero().flatten().tolist()
    if query is None:
        return real
    if isinstance(query, str):
        if norms.token_strings is None:
            raise UnknownPositionError(
                f"this result keeps no token strings, so {query!r} cannot be found in it: "
                f"block_norms(cache, tokens=model.to_str_tokens(text)), or give the position as a number."
            )
        for same in (lambda name: name == query, lambda name: name.strip() == query.strip()):
            if found := [position for position in real if same(names[position])]:
                return found
        shown = ", ".join(repr(names[position]) for position in real[:40])
        raise UnknownPositionError(f"there is no token {query!r} in this text; it has {shown}.")
    if isinstance(query, bool) or not isinstance(query, int):
        raise UnknownPositionError(f"query is {query!r}; expected a token's string, a position, or None for all.")
    position = query if query >= 0 else (real[query] if -len(real) <= query else -1)
    if position not in real:
        raise UnknownPositionError(f"there is no position {query}: this text has {len(real)}, {real[0]} to {real[-1]}.")
    return [position]
