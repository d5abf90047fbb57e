"""Alignment error rates of all layers and heads: the result of `studies.alignment`, and its tables."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..alignment.error_rate import AlignmentErrorRate
from ..alignment.extraction import METHODS, Method, Setting
from ..storage.storable import Storable
from .engine.correlation import spearman
from .engine.run import CorpusFacts
from .tables import frame, long

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Alignments(Storable):
    """Alignment error rates of every layer and head, 0 (best) to 1, from counts over all sentence pairs.

    Attributes:
        settings: "AWO" (the step that predicts a target piece), "AWI" (the step that reads it)
        layers: the layer numbers
        counts: links predicted, sure ones among them and possible ones among them,
            [setting method layer 1+head 3]; methods are ("weight", "norm"), and before the heads comes the layer as a
            whole: mean of the heads' weights, norm of the heads' sum
        n_sure: sure links in the gold standard
        mean_norms: mean of |alpha f(x)| over all decoder steps and source positions of all pairs, [layer head]
        corpus: what was measured; its tokens are those of both sides
    """

    settings: tuple[Setting, ...]
    layers: tuple[int, ...]
    counts: np.ndarray
    n_sure: int
    mean_norms: np.ndarray
    corpus: CorpusFacts

    @property
    def aer(self) -> np.ndarray:
        """1 - (|A∩S| + |A∩P|) / (|A| + |S|) of layers as a whole, [setting method layer]; nan without any link."""
        return self._rates("aer")[..., 0]

    @property
    def head_aer(self) -> np.ndarray:
        """The same of heads, [setting method layer head]."""
        return self._rates("aer")[..., 1:]

    def strongest_layer(self) -> int:
        """The layer with the highest mean norm: argmax_l sum_h mean |alpha f(x)|."""
        return self.layers[int(self.mean_norms.sum(-1).argmax())]

    def strongest_head(self) -> tuple[int, int]:
        """(layer, head) with the highest mean norm."""
        layer, head = np.unravel_index(int(self.mean_norms.argmax()), self.mean_norms.shape)
        return self.layers[int(layer)], int(head)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per setting, method and layer: aer, precision, recall, and the layer's mean norm (sum over heads)."""
        rates = {name: self._rates(name)[..., 0] for name in ("aer", "precision", "recall")}
        axes = {"setting": self.settings, "method": METHODS, "layer": self.layers}
        return long(axes, rates | {"mean_norm": np.broadcast_to(self.mean_norms.sum(-1), rates["aer"].shape)})

    def heads_to_dataframe(self) -> "pandas.DataFrame":
        """One row per setting, method, layer and head: aer, precision, recall, and the head's mean norm."""
        rates = {name: self._rates(name)[..., 1:] for name in ("aer", "precision", "recall")}
        axes = {"setting": self.settings, "method": METHODS, "layer": self.layers}
        axes["head"] = range(self.mean_norms.shape[1])
        return long(axes, rates | {"mean_norm": np.broadcast_to(self.mean_norms, rates["aer"].shape)})

    def summary_to_dataframe(self) -> "pandas.DataFrame":
        """The rows of the paper's table: per setting and method aer of the layer mean, the best layer, and the layer
        and (by norms) the head with the highest mean norm. The best layer is chosen by the gold standard itself."""
        strong, (layer, head) = self.layers.index(self.strongest_layer()), self.strongest_head()
        rows: list[tuple[Any, ...]] = []
        for s, setting in enumerate(self.settings):
            for m, method in enumerate(METHODS):
                aer = self.aer[s, m]
                best = int(np.where(np.isnan(aer), np.inf, aer).argmin())
                rows.append((setting, method, "layer mean", None, None, float(aer.mean())))
                rows.append((setting, method, "best layer", self.layers[best], None, float(aer[best])))
                rows.append((setting, method, "highest norm, layer", self.layers[strong], None, float(aer[strong])))
                if method == "norm":
                    rate = float(self.head_aer[s, m, self.layers.index(layer), head])
                    rows.append((setting, method, "highest norm, head", layer, head, rate))
        columns = ("setting", "method", "of", "layer", "head", "aer")
        table = frame(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
        return table.astype({"layer": "Int64", "head": "Int64"})

    def correlations(self) -> "pandas.DataFrame":
        """One row per setting: Spearman's and Pearson's correlation of a head's aer by norms with its mean norm."""
        norms, found = self.mean_norms.ravel(), []
        for setting, aer in zip(self.settings, self.head_aer[:, METHODS.index("norm")], strict=True):
            rates = aer.ravel()
            known = ~np.isnan(rates)
            rho = spearman(rates[known], norms[known]).rho
            found.append((setting, rho, _pearson(rates[known], norms[known]), int(known.sum())))
        return frame(dict(zip(("setting", "spearman", "pearson", "n_heads"), map(list, zip(*found)), strict=True)))  # noqa: B905

    def rate(self, setting: Setting, method: Method, layer: int, head: int | None = None) -> AlignmentErrorRate:
        """The error rate of a layer as a whole, or of one of its heads, with its counts."""
        at = (
            self.settings.index(setting),
            METHODS.index(method),
            self.layers.index(layer),
            0 if head is None else 1 + head,
        )
        n, sure, possible = self.counts[at].tolist()
        return AlignmentErrorRate(n, self.n_sure, sure, possible, self.corpus.n_texts)

    def _rates(self, name: str) -> np.ndarray:
        """`aer`, `precision` or `recall`, [setting method layer 1+head]."""
        cells = self.counts.reshape(-1, 3).tolist()
        rates = [getattr(AlignmentErrorRate(n, self.n_sure, *shared), name) for n, *shared in cells]
        return np.array(rates).reshape(self.counts.shape[:-1])


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    """nan if one side is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 0 else float("nan")
