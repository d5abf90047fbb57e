"""Numbers by layer: mixing ratios of each kind of token, and how much each component changes a map."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from ..errors import UnknownLayerError, UnknownScopeError
from ..metrics import component_changes
from ..results import BlockNorms
from .draw import Figure, drawn
from .errors import PlotInputError
from .layout import fitting_columns
from .picture import Curves, Line, Look, LookOptions, Picture
from .select import Tokens, about, chosen_text, corpus_of, one_text
from .words import SPECIAL

OVERALL, OTHER = "overall", "other"
_SCOPES = {"Attn-N": "attn", "AttnRes-N": "attn_res", "AttnResLn-N": "attn_res_ln"}  # a study has the papers' names


def mixing_ratios(
    result: Any,
    tokens: Tokens | None = None,
    *,
    types: Sequence[str] | None = None,
    batch: int | None = None,
    panels: Literal["method", "type"] = "method",
    **look: Unpack[LookOptions],
) -> Figure:
    """Mixing ratios by layer and kind of token (Kobayashi et al. 2021, Figure 3), 0 to 1.

    ‖Σ_{j≠i} v_ij‖ / (‖Σ_{j≠i} v_ij‖ + ‖v_ii‖), mean over the tokens of a kind; by weights alone beside it.

    Args:
        result: a BlockNorms, or the MixingRatios of a study
        tokens: those of the text, None if the result keeps them; not for a study, which knows its own kinds
        types: a kind per token instead: by default special tokens by name ("[CLS]", "<s>", "<|endoftext|>") and "other"
        batch: which text, where there are several
        panels: "method" for a panel per scope with a curve per kind, "type" for the reverse
        **look: `backend`, `title`, `width`: see `tl_norms.plot.Look`

    Returns:
        A Figure. The curve "overall" is the mean over all tokens. Scopes have their own names, weights the papers'.

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
        methods = tuple(_SCOPES.get(method, method) for method in result.methods)
        kinds, values, note = result.types, result.by_layer, corpus_of(result)
    elif isinstance(result, BlockNorms):
        methods, kinds, values, note = _by_kind(result, tokens, types, batch)
    else:
        raise PlotInputError(f"expected a BlockNorms or the MixingRatios of a study, got {type(result).__name__}.")
    rows, columns = (kinds, methods) if panels == "method" else (methods, kinds)
    values = values if panels == "method" else values.transpose(1, 0, 2)  # [curve panel layer]
    made = []
    for panel, one in enumerate(columns):
        lines = tuple(Line(str(name), tuple(result.layers), values[n, panel]) for n, name in enumerate(rows))
        made.append((str(one), lines))
    title = "Mixing ratio by layer: how much of a position comes from other positions"
    return _drawn(made, "mixing ratio", (0, 1), title, note, Look(**look))


def changes(
    result: Any, *, layers: Sequence[int] | None = None, batch: int | None = None, **look: Unpack[LookOptions]
) -> Figure:
    """How much each component changes the map before it, by layer: 1 - Spearman (Kobayashi et al. 2024).

    Args:
        result: a BlockNorms with neighbouring scopes (`ffn_maps`, or scopes="all"), what `metrics.component_changes`
            makes of it, the Changes of `studies.contextualization_change` or `studies.cancellation`, or a
            `metrics.Cancellation`
        layers: of the dict of `component_changes`, which does not know them: its layer numbers, None to count from 0
        batch: which text of a BlockNorms, dict or Cancellation, where there are several
        **look: `backend`, `title`, `width`: see `tl_norms.plot.Look`

    Returns:
        A Figure, a curve per component, 0 (same order of pairs) to 2 (opposite order). Of a study: the mean over
        texts, and a band for the middle half of them.

    Raises:
        PlotInputError: no two neighbouring scopes, several texts and no `batch`, or layers that do not fit.
        MissingExtraError: scipy is not installed.

    Example:
        >>> plot.changes(studies.contextualization_change(model, texts))                # doctest: +SKIP
        >>> plot.changes(metrics.component_changes(maps), batch=0)                      # doctest: +SKIP
    """
    title = "Change of the map by each component"
    if hasattr(result, "components") and hasattr(result, "values"):
        if batch is not None:
            raise PlotInputError("a study is shown over all its texts: leave batch out.")
        title = title if result.base is None else _since(result.base)
        lines = [_of_texts(name, result, values) for name, values in zip(result.components, result.values, strict=True)]
        band = "band: the middle half of the texts" if lines[0].low is not None else ""
        note = "; ".join(filter(None, [corpus_of(result), band]))
        return _changes([("", tuple(lines))], title, note, Look(**look))
    if isinstance(result, BlockNorms):
        found = {"": component_changes(result)}
        if not found[""]:
            raise PlotInputError("no scope of this result stands beside another: ask for them, scopes='all'.")
    elif hasattr(result, "changes") and hasattr(result, "base"):
        found, title = result.changes, _since(result.base)
    elif isinstance(result, Mapping) and result and all(isinstance(value, Tensor) for value in result.values()):
        found = {"": result}
    else:
        raise PlotInputError(
            f"expected a BlockNorms, the dict of metrics.component_changes, a Cancellation or Changes, got "
            f"{type(result).__name__}."
        )
    made = []
    for variant, steps in found.items():
        lines = []
        for name, value in steps.items():
            text = chosen_text(value.shape[1] if value.ndim == 2 else None, batch)
            curve = torch.as_tensor(value).detach().cpu().double().numpy()
            numbers = _layers(result, layers, len(curve))
            lines.append(Line(name, numbers, curve if text is None else curve[:, text]))
        made.append(("" if len(found) == 1 else variant.replace("_", " "), tuple(lines)))
    return _changes(made, title, _told(result, batch), Look(**look))


def _since(base: str) -> str:
    """The title of a cancellation: its steps are cumulated."""
    return f"Change of the map since {base}, up to each later step"


def _layers(result: Any, layers: Sequence[int] | None, n: int) -> tuple[int, ...]:
    known = getattr(result, "layers", None)
    if known is not None and layers is not None:
        raise PlotInputError("this result knows its layers: leave layers out.")
    numbers = tuple(known if known is not None else range(n) if layers is None else layers)
    if len(numbers) != n:
        raise PlotInputError(f"layers has {len(numbers)} numbers for changes in {n} layers: one for each.")
    return numbers


def _changes(panels: list[tuple[str, tuple[Line, ...]]], title: str, note: str, look: Look) -> Figure:
    values = [part for _, lines in panels for line in lines for part in (line.y, line.high) if part is not None]
    finite = np.concatenate([value[np.isfinite(value)] for value in values])
    highest = min(2.0, 1.08 * float(finite.max())) if finite.size else 2.0
    return _drawn(panels, "change, 1 − Spearman", (0, highest or 1.0), title, note, look)


def _drawn(
    panels: Sequence[tuple[str, tuple[Line, ...]]],
    name: str,
    limits: tuple[float, float],
    title: str,
    note: str,
    look: Look,
) -> Figure:
    made = tuple(Curves(one, lines, "layer", name, limits) for one, lines in panels)
    across = fitting_columns(len(made), 16, look.width, most=3)
    return drawn(Picture(made, across, (), title, (note,) if note else (), look))


def _told(result: Any, batch: int | None) -> str:
    """Model and text of a result that keeps them."""
    tokens = getattr(result, "token_strings", None)
    if tokens and not isinstance(tokens[0], str):
        tokens = tokens[batch or 0]
    return about(result, tokens or ())


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
) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray, str]:
    """Scopes, kinds, mean ratios [kind scope layer], and which text."""
    if not norms.scopes or not norms.layers:
        raise UnknownLayerError("this result holds no scope or no layer.")
    text = one_text(norms, norms.mixing_ratio(norms.scopes[0])[..., None], 3, tokens, batch=batch)
    methods: dict[str, np.ndarray] = {}
    by_weight = _has_weights(norms)
    if by_weight:
        methods["Attn-W"] = text.values(norms.mixing_ratio("Attn-W"))
    for scope in norms.scopes:
        if scope == "attn_res" and by_weight:
            methods["AttnRes-W"] = text.values(norms.mixing_ratio("AttnRes-W"))
        methods[scope] = text.values(norms.mixing_ratio(scope))
    values = np.stack(list(methods.values()))[..., text.query_kept]  # [method layer query]
    if types is None:
        types = [token.strip() if SPECIAL.fullmatch(token.strip()) else OTHER for token in text.words]
    if len(types) == len(text.query_kept):
        types = [kind for kind, real in zip(types, text.query_kept, strict=True) if real]
    if len(types) != values.shape[-1]:
        raise PlotInputError(f"types has {len(types)} entries for {values.shape[-1]} tokens: one for each.")
    kinds = [kind for kind in dict.fromkeys(types) if kind != OTHER] + [OTHER] * (OTHER in types)
    masks = [np.ones(len(types), bool), *(np.array([kind == one for one in types]) for kind in kinds)]
    means = np.stack([values[..., mask].mean(-1) for mask in masks])
    return tuple(methods), (OVERALL, *kinds), means, about(norms, text.words)


def _has_weights(norms: BlockNorms) -> bool:
    """Whether ratios by weights alone can be had: of a recorded result only where they were kept."""
    try:
        norms.mixing_ratio("Attn-W")
    except UnknownScopeError:
        return False
    return True
