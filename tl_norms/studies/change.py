"""How much each component changes the maps, over a corpus (ICLR 2024)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn
from typing_extensions import Unpack

from ..linear.hold import Bias
from ..metrics import component_changes
from ..norms import scopes
from ..options import Layers
from ..storage.storable import Storable
from .engine.executors import Model
from .engine.options import BIASES, RunOptions, chosen, one_of, whole
from .engine.partial import Mergeable, Partial
from .engine.recording import index, layer_numbers, numbers, per_layer
from .engine.run import CorpusFacts, run
from .engine.study import Reading, Study
from .engine.tallies import Rows
from .engine.tokens import Batch
from .tables import long

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Changes(Storable):
    """Changes of maps, 1 - Spearman, 0 (same order) to 2 (opposite order), per text.

    Attributes:
        components: along the first axis. Of `contextualization_change`: the scopes, whose last word is the component
            that changes the map before it. Of `cancellation`: the steps after the attention block, cumulated.
        layers: the layer numbers along the second axis
        texts: (text, window) along the last axis, [text 2]
        values: [component layer text]; nan where a map has no order (one token, or constant)
        norms: of `cancellation`: "output_norm" and "stream_norm" -> mean norm of what the feed-forward adds and of
            the stream it is added to, [layer text]; else empty
        corpus: what was measured
        base: of `cancellation`: the scope, of the attention block, that every change is measured from; else None
    """

    components: tuple[str, ...]
    layers: tuple[int, ...]
    texts: np.ndarray
    values: np.ndarray
    norms: dict[str, np.ndarray]
    corpus: CorpusFacts
    base: str | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean over the texts whose maps have an order, [component layer]."""
        seen = ~np.isnan(self.values)
        with np.errstate(invalid="ignore"):
            return np.where(seen, self.values, 0).sum(-1) / seen.sum(-1)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per component and layer: the mean over texts, and mean norms if there are any."""
        shape = self.mean.shape
        norms = {name: np.broadcast_to(value.mean(-1), shape) for name, value in self.norms.items()}
        return long({"component": self.components, "layer": self.layers}, {"change": self.mean, **norms})

    def texts_to_dataframe(self) -> "pandas.DataFrame":
        """One row per component, layer and text: change."""
        axes = {"component": self.components, "layer": self.layers, "row": range(len(self.texts))}
        table = long(axes, {"change": self.values})
        for column, name in enumerate(("text", "window")):
            table[name] = self.texts[table["row"], column]
        return table.drop(columns="row")


@dataclass(frozen=True)
class _Study(Study):
    layers: tuple[int, ...] | None
    bias: Bias
    sketch: int | None
    name: ClassVar[str] = "contextualization-change"

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        options = {"bias": self.bias, "sketch": self.sketch}
        layers = per_layer(model, batch, "all", self.layers, component_changes, **options).values()
        names = next(iter(layers))
        values = np.stack([[numbers(layer[name][0]) for layer in layers] for name in names])
        return {"change": Rows(index(batch), values.transpose(2, 0, 1))}


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
    directions = None if sketch is None else whole("sketch", sketch, 1, or_none=True)
    study = _Study(chosen(layers), one_of("bias", bias, BIASES), directions)
    own, partial, facts = run(model, study, texts, reading=Reading(pad=False), **options)
    return changes_of(own, study.layers, partial, scopes(own)[1:], facts)


def changes_of(
    model: nn.Module,
    layers: tuple[int, ...] | None,
    partial: Partial,
    components: tuple[str, ...],
    facts: CorpusFacts,
) -> Changes:
    """The result from the merged rows, [text component layer]."""
    rows: Any = partial.values["change"]
    values = rows.values.transpose(1, 2, 0)
    return Changes(components, layer_numbers(model, layers), rows.index, values, {}, facts)
