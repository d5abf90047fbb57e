"""What each component changes, and what of it the later ones take back, over a corpus (ICLR 2024)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from typing_extensions import Unpack

from ..linear.hold import Bias
from ..metrics import cancellation as cancellation_of
from ..metrics import component_changes
from ..norms import required_hooks, scopes
from ..options import Layers
from .frames import long
from .measuring import Reading
from .partial import Mergeable
from .pool import Model
from .recording import arguments, chosen, index, layer_numbers, numbers, per_layer
from .run import CorpusFacts, RunOptions, run
from .tallies import Rows
from .tokens import Batch

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Changes:
    """Changes of maps, 1 - Spearman, 0 (same order) to 2 (opposite order), per text.

    Attributes:
        components: along the first axis. Of `contextualization_change`: the scopes, whose last word is the component
            that changes the map before it. Of `cancellation`: the steps behind the attention block, cumulated.
        layers: the layer numbers along the second axis
        texts: (text, window) along the last axis, [text 2]
        values: [component layer text]; nan where a map has no order (one token, or constant)
        norms: of `cancellation`: "output_norm" and "stream_norm" -> mean length of what the feed-forward adds and of
            the stream it is added to, [layer text]; else empty
        corpus: what was measured
    """

    components: tuple[str, ...]
    layers: tuple[int, ...]
    texts: np.ndarray
    values: np.ndarray
    norms: dict[str, np.ndarray]
    corpus: CorpusFacts

    @property
    def mean(self) -> np.ndarray:
        """Mean over the texts whose maps have an order, [component layer]."""
        seen = ~np.isnan(self.values)
        with np.errstate(invalid="ignore"):
            return np.where(seen, self.values, 0).sum(-1) / seen.sum(-1)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per component and layer: the mean over texts, and mean lengths if there are any."""
        shape = self.mean.shape
        lengths = {name: np.broadcast_to(value.mean(-1), shape) for name, value in self.norms.items()}
        return long({"component": self.components, "layer": self.layers}, {"change": self.mean, **lengths})

    def texts_to_dataframe(self) -> "pandas.DataFrame":
        """One row per component, layer and text: change."""
        axes = {"component": self.components, "layer": self.layers, "row": range(len(self.texts))}
        table = long(axes, {"change": self.values})
        for column, name in enumerate(("text", "window")):
            table[name] = self.texts[table["row"], column]
        return table.drop(columns="row")


@dataclass(frozen=True)
class _ChangeStudy:
    layers: tuple[int, ...] | None
    bias: Bias
    sketch: int | None
    name: str = "contextualization-change"

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        options = {"bias": self.bias, "sketch": self.sketch}
        layers = per_layer(model, batch, "all", self.layers, component_changes, **options).values()
        names = next(iter(layers))
        values = np.stack([[numbers(layer[name][0]) for layer in layers] for name in names])
        return {"change": Rows(index(batch), values.transpose(2, 0, 1))}


@dataclass(frozen=True)
class _CancellationStudy:
    layers: tuple[int, ...] | None
    bias: Bias
    name: str = "cancellation"

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        ids, options = arguments(model, batch)
        hooks = required_hooks(model, "all", self.layers)
        lens: Any = model  # torch's stubs do not know it
        _, cache = lens.run_with_cache(ids, names_filter=hooks, **options)
        found = cancellation_of(cache, layers=self.layers, mask=batch.mask, bias=self.bias, leave_out=0)
        rows = [*found.changes["all"].values(), found.output_norm, found.stream_norm]
        return {"change": Rows(index(batch), np.stack([numbers(row) for row in rows]).transpose(2, 0, 1))}


def contextualization_change(
    model: Model,
    texts: Iterable[Any],
    *,
    layers: Layers = None,
    bias: Bias = "player",
    sketch: int | None = None,
    **options: Unpack[RunOptions],
) -> Changes:
    """How much each component reorders the map before it: 1 - Spearman per component, layer and text.

    Kobayashi et al. 2024, section 4; `tl_norms.metrics.component_changes` of every text.

    Args:
        model: the model, or a function without arguments that makes it
        texts: an iterable of texts or token ids
        layers: one layer, several, or None for all
        bias, sketch: as for `tl_norms.block_norms`; sketch=64 is faster for long texts, with a small random error
        **options: see `RunOptions`

    Returns:
        Changes: `.values` [component layer text], `.mean` [component layer].

    Raises:
        StudyInputError: no text can be measured.
        MissingExtraError: scipy is not installed.

    Example:
        >>> studies.contextualization_change(model, texts).to_dataframe()       # doctest: +SKIP
    """
    study = _ChangeStudy(chosen(layers), bias, sketch)
    own, partial, facts = run(model, study, texts, reading=Reading(pad=False), **options)
    return _changes(own, study.layers, partial, scopes(own)[1:], facts)


def cancellation(
    model: Model,
    texts: Iterable[Any],
    *,
    layers: Layers = None,
    bias: Bias = "player",
    **options: Unpack[RunOptions],
) -> Changes:
    """Whether the residual connection and the layer norm undo what the feed-forward does, over a corpus.

    Changes against the map of the attention block, cumulated: where they shrink from one step to the next, that step
    cancels (Kobayashi et al. 2024, section 5; `tl_norms.metrics.cancellation` of every text).

    Args:
        model: the model, or a function without arguments that makes it
        texts: an iterable of texts or token ids
        layers: one layer, several, or None for all
        bias: as for `tl_norms.block_norms`
        **options: see `RunOptions`

    Returns:
        Changes: `.values` [component layer text], `.norms["output_norm"]` [layer text], ...

    Raises:
        StudyInputError: no text can be measured. Otherwise as `tl_norms.metrics.cancellation`.

    Example:
        >>> studies.cancellation(model, texts).to_dataframe()                   # doctest: +SKIP
    """
    study = _CancellationStudy(chosen(layers), bias)
    own, partial, facts = run(model, study, texts, reading=Reading(pad=False), **options)
    n = partial.values["change"].values.shape[1] - 2  # type: ignore[attr-defined]
    found = _changes(own, study.layers, partial, scopes(own)[-n:], facts)
    base = scopes(own)[-n - 1]
    lengths = {name: found.values[n + number] for number, name in enumerate(("output_norm", "stream_norm"))}
    steps = tuple(scope.removeprefix(base + "_") for scope in found.components)
    return replace(found, components=steps, values=found.values[:n], norms=lengths)


def _changes(model: nn.Module, layers, partial, components: tuple[str, ...], facts: CorpusFacts) -> Changes:
    rows: Any = partial.values["change"]
    values = rows.values.transpose(1, 2, 0)
    return Changes(components, layer_numbers(model, layers), rows.index, values, {}, facts)
