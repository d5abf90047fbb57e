"""How much the norms of value vectors differ between tokens (EMNLP 2020, Table 1)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn
from typing_extensions import Unpack

from ..options import Layers
from ..storage.storable import Storable
from .engine.executors import Model
from .engine.moments import Moments
from .engine.options import RunOptions, chosen
from .engine.partial import Mergeable
from .engine.recording import layer_numbers, numbers, per_layer
from .engine.run import CorpusFacts, run
from .engine.study import Study
from .engine.tokens import Batch
from .tables import long

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class ValueNormDispersion(Storable):
    """‖f(x)‖ over all tokens, per head.

    Attributes:
        layers: the layer numbers along the first axis
        mean, sd, cv, max, min: [layer head]; sd is that of the population, cv = sd / mean
        corpus: what was measured
    """

    layers: tuple[int, ...]
    mean: np.ndarray
    sd: np.ndarray
    cv: np.ndarray
    max: np.ndarray
    min: np.ndarray
    corpus: CorpusFacts

    @property
    def average(self) -> dict[str, float]:
        """mean, sd and cv averaged over heads: the last row of the paper's table."""
        return {name: float(getattr(self, name).mean()) for name in ("mean", "sd", "cv")}

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per layer and head: mean, sd, cv, max, min."""
        names = ("mean", "sd", "cv", "max", "min")
        return long(
            {"layer": self.layers, "head": range(self.mean.shape[1])}, {name: getattr(self, name) for name in names}
        )


@dataclass(frozen=True)
class _Study(Study):
    layers: tuple[int, ...] | None
    name: ClassVar[str] = "value-norm-dispersion"

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        kept = per_layer(model, batch, ["attn"], self.layers, lambda norms: numbers(norms.value_norms[0]), maps=False)
        values = np.stack(list(kept.values())).transpose(0, 2, 1, 3)  # [layer head batch key]
        return {"norm": Moments.of(values[:, :, batch.counted.numpy()])}


def value_norm_dispersion(
    model: Model, texts: Iterable[Any], *, layers: Layers = None, **options: Unpack[RunOptions]
) -> ValueNormDispersion:
    """Mean, standard deviation, coefficient of variation, maximum and minimum of ‖f(x)‖ per head.

    f(x) = (x W_V + b_V) W_O, over all tokens of the corpus (Kobayashi et al. 2020, section 4.1, Table 1).

    Args:
        model: the model, or a function without arguments that makes it
        texts: an iterable of texts or token ids
        layers: one layer, several, or None for all
        **options: see `RunOptions`

    Returns:
        ValueNormDispersion, arrays [layer head] in the units of the residual stream.

    Raises:
        StudyInputError: no text can be measured. Otherwise as `tl_norms.block_norms`.

    Example:
        >>> studies.value_norm_dispersion(model, texts).average                 # doctest: +SKIP
        {'mean': 5.15, 'sd': 1.17, 'cv': 0.22}
    """
    study = _Study(chosen(layers))
    own, partial, facts = run(model, study, texts, **options)
    found: Any = partial.values["norm"]
    return ValueNormDispersion(
        layer_numbers(own, study.layers), found.mean, found.sd, found.sd / found.mean, found.max, found.min, facts
    )
