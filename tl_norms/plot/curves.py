"""Numbers by layer: mixing ratios of each kind of token, and how much each component changes a map."""

import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..errors import UnknownLayerError
from ..metrics import component_changes
from ..results import BlockNorms
from .draw import Figure, drawn
from .errors import PlotInputError
from .select import Tokens, chosen_text, one_text
from .spec import Backend, Line, Lines

OVERALL, OTHER = "overall", "other"
_SPECIAL = re.compile(r"\[[A-Z]+\]|</?\w+>|<\|.*\|>")
_PAPER = {"attn": "Attn-N", "attn_res": "AttnRes-N", "attn_res_ln": "AttnResLn-N"}


def mixing_ratios(
    result: Any,
    tokens: Tokens | None = None,
    *,
    types: Sequence[str] | None = None,
    batch: int | None = None,
    panels: Literal["method", "type"] = "method",
    backend: Backend = "plotly",
) -> Figure:
    """Mixing ratios by layer and kind of token (Kobayashi et al. 2021, Figure 3), 0 to 1.

    |sum_{j≠i} v_ij| / (|sum_{j≠i} v_ij| + |v_ii|), mean over the tokens of a kind; by weights alone beside it.

    Args:
        result: a BlockNorms, or the MixingRatios of a study
        tokens: those of the text; not for a study, which knows its own kinds
        types: a kind per token instead: by default special tokens by name ("[CLS]", "<s>", "<|endoftext|>") and "other"
        batch: which text, where there are several
        panels: "method" for a panel per method with a curve per kind, "type" for the reverse
        backend: "plotly" or "matplotlib"

    Returns:
        A Figure. The curve "overall" is the mean over all tokens.

    Raises:
        PlotInputError: no tokens, or tokens for a study. Otherwise as `layer_maps`.

    Example:
        >>> plot.mixing_ratios(studies.mixing_ratio(model, texts), panels="type")       # doctest: +SKIP
    """
    if panels not in ("method", "type"):
        raise PlotInputError(f"panels is {panels!r}: expected 'method' or 'type'.")
    if hasattr(result, "by_layer"):
        if tokens is not None or types is not None or batch is not None:
            raise PlotInputError("a study knows its texts and kinds of tokens: leave tokens, types and batch out.")
        methods, kinds, values = result.methods, result.types, result.by_layer
    elif isinstance(result, BlockNorms):
        methods, kinds, values = _by_kind(result, tokens, types, batch)
    else:
        raise PlotInputError(f"expected a BlockNorms or the MixingRatios of a study, got {type(result).__name__}.")
    rows, columns = (kinds, methods) if panels == "method" else (methods, kinds)
    values = values if panels == "method" else values.transpose(1, 0, 2)  # [curve panel layer]
    made = []
    for panel, title in enumerate(columns):
        made.append((title, tuple(Line(name, tuple(result.layers), values[n, panel]) for n, name in enumerate(rows))))
    return drawn(Lines(tuple(made), "layer", "mixing ratio", (0, 1)), backend)


def changes(result: Any, *, batch: int | None = None, backend: Backend = "plotly") -> Figure:
    """How much each component changes the map in front of it, by layer: 1 - Spearman (Kobayashi et al. 2024).

    Args:
        result: a BlockNorms with neighbouring scopes (`ffn_maps`, or scopes="all"), the Changes of
            `studies.contextualization_change` or `studies.cancellation`, or a `metrics.Cancellation`
        batch: which text of a BlockNorms or Cancellation, where there are several
        backend: "plotly" or "matplotlib"

    Returns:
        A Figure, a curve per component, 0 (same order of pairs) to 2 (opposite order). Of a study: the mean over
        texts, and a band for the middle half of them.

    Raises:
        PlotInputError: no two neighbouring scopes, or several texts and no `batch`.
        MissingExtraError: scipy is not installed.

    Example:
        >>> plot.changes(studies.contextualization_change(model, texts))                # doctest: +SKIP
    """
    if isinstance(result, BlockNorms):
        found = {"": component_changes(result)}
        if not found[""]:
            raise PlotInputError("no scope of this result stands beside another: ask for them, scopes='all'.")
    elif hasattr(result, "changes") and hasattr(result, "base"):
        found = result.changes
    elif hasattr(result, "components") and hasattr(result, "values"):
        if batch is not None:
            raise PlotInputError("a study is shown over all its texts: leave batch out.")
        lines = [_of_texts(name, result, values) for name, values in zip(result.components, result.values, strict=True)]
        return _changes([("", tuple(lines))], backend)
    else:
        raise PlotInputError(f"expected a BlockNorms, Cancellation or Changes, got {type(result).__name__}.")
    made = []
    for title, steps in found.items():
        lines = []
        for name, value in steps.items():
            text = chosen_text(value.shape[1] if value.ndim == 2 else None, batch)
            curve = value.detach().cpu().double().numpy()
            lines.append(Line(name, tuple(result.layers), curve if text is None else curve[:, text]))
        made.append(("" if len(found) == 1 else title.replace("_", " "), tuple(lines)))
    return _changes(made, backend)


def _changes(panels: list[tuple[str, tuple[Line, ...]]], backend: Backend) -> Figure:
    values = [part for _, lines in panels for line in lines for part in (line.y, line.high) if part is not None]
    finite = np.concatenate([value[np.isfinite(value)] for value in values])
    highest = min(2.0, 1.08 * float(finite.max())) if finite.size else 2.0
    return drawn(Lines(tuple(panels), "layer", "change, 1 − Spearman", (0, highest or 1.0)), backend)


def _of_texts(name: str, result: Any, values: np.ndarray) -> Line:
    """Mean over texts and the band of their middle half, [layer]."""
    layers = tuple(result.layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a layer without any number is a gap in the curve
        mean = np.nanmean(values, -1)
        if values.shape[-1] < 4:  # no quarters to speak of
            return Line(name, layers, mean)
        low, high = np.nanpercentile(values, [25, 75], axis=-1)
    return Line(name, layers, mean, low, high)


def _by_kind(
    norms: BlockNorms, tokens: Tokens | None, types: Sequence[str] | None, batch: int | None
) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Methods, kinds, and mean ratios [kind method layer]."""
    if tokens is None:
        raise PlotInputError("expected tokens, those of the text: model.to_str_tokens(text).")
    if not norms.scopes or not norms.layers:
        raise UnknownLayerError("this result holds no scope or no layer.")
    text = one_text(norms, norms.mixing_ratio(norms.scopes[0])[..., None], 3, tokens, batch=batch)
    methods: dict[str, np.ndarray] = {}
    by_weight = norms.patterns is not None or norms.heads.attention_ratio is not None
    if by_weight:
        methods["Attn-W"] = text.values(norms.mixing_ratio("Attn-W"))
    for scope in norms.scopes:
        if scope == "attn_res" and by_weight:
            methods["AttnRes-W"] = text.values(norms.mixing_ratio("AttnRes-W"))
        methods[_PAPER.get(scope, scope)] = text.values(norms.mixing_ratio(scope))
    values = np.stack(list(methods.values()))[..., text.query_kept]  # [method layer query]
    if types is None:
        types = [token if _SPECIAL.fullmatch(token) else OTHER for token in text.queries.tokens]
    if len(types) == len(text.query_kept):
        types = [kind for kind, real in zip(types, text.query_kept, strict=True) if real]
    if len(types) != values.shape[-1]:
        raise PlotInputError(f"types has {len(types)} entries for {values.shape[-1]} tokens: one for each.")
    kinds = [kind for kind in dict.fromkeys(types) if kind != OTHER] + [OTHER] * (OTHER in types)
    masks = [np.ones(len(types), bool), *(np.array([kind == one for one in types]) for kind in kinds)]
    return tuple(methods), (OVERALL, *kinds), np.stack([values[..., mask].mean(-1) for mask in masks])
