"""What later steps take back of what the feed-forward changes, over a corpus (ICLR 2024)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import nn
from typing_extensions import Unpack

from ..linear.hold import Bias
from ..metrics import cancellation as cancellation_of
from ..norms import required_hooks, scopes
from ..options import Layers
from .change import Changes, changes_of
from .engine.executors import Model
from .engine.options import BIASES, RunOptions, chosen, one_of
from .engine.partial import Mergeable
from .engine.recording import arguments, index, numbers
from .engine.run import run
from .engine.study import Reading, Study
from .engine.tallies import Rows
from .engine.tokens import Batch


@dataclass(frozen=True)
class _Study(Study):
    layers: tuple[int, ...] | None
    bias: Bias
    name: ClassVar[str] = "cancellation"

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Mergeable]:
        ids, options = arguments(model, batch)
        hooks = required_hooks(model, "all", self.layers)
        lens: Any = model  # torch's stubs do not know it
        _, cache = lens.run_with_cache(ids, names_filter=hooks, **options)
        found = cancellation_of(cache, layers=self.layers, mask=batch.mask, bias=self.bias, leave_out=0)
        rows = [*found.changes["all"].values(), found.output_norm, found.stream_norm]
        return {"change": Rows(index(batch), np.stack([numbers(row) for row in rows]).transpose(2, 0, 1))}


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
    study = _Study(chosen(layers), one_of("bias", bias, BIASES))
    own, partial, facts = run(model, study, texts, reading=Reading(pad=False), **options)
    n = partial.values["change"].values.shape[1] - 2  # type: ignore[attr-defined]
    found = changes_of(own, study.layers, partial, scopes(own)[-n:], facts)
    base = scopes(own)[-n - 1]
    norms = {name: found.values[n + number] for number, name in enumerate(("output_norm", "stream_norm"))}
    steps = tuple(scope.removeprefix(base + "_") for scope in found.components)
    return replace(found, components=steps, values=found.values[:n], norms=norms, base=base)
