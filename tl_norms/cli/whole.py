"""`--check` of the whole model: one attribution, at every cut, and the same walked forward."""

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from ..attribution import attribute, last_stream, top_target
from ..attribution_result import Attribution
from ..errors import DecompositionError, TLNormsError
from ..held_run import attribution_hooks, map_of
from ..linear.measure.measures import Length
from ..propagation_sums import Measuring
from ..read_targets import read_targets
from ..targets import Target, TargetError, direction
from ..tolerances import WHOLE_MODEL
from ..walk import Walk

_MOST_TOKENS = 128


@dataclass(frozen=True)
class Checked:
    """One attribution of a model, for `--check`.

    Attributes:
        target: its name
        error: of every cut, then of every cut of the encoder
        refused: why this model cannot be attributed as a whole; None if it can
        complete: every cut adds up, or there is nothing to add up
        forward: how far tokens walked forward are from the same carried back, relative to the largest; None for more
            than 128 tokens, of which each is a forward pass
    """

    target: str | None
    error: tuple[float, ...]
    refused: str | None
    complete: bool
    forward: float | None = None

    def numbers(self) -> dict[str, Any]:
        """As plain Python values, for `--json`."""
        return {
            "target": self.target,
            "error": list(self.error),
            "forward": self.forward,
            "refused": self.refused,
            "complete": self.complete,
        }


def checked(model: Any, dtype: str, tokens: Tensor, **inputs: Any) -> Checked:
    """One attribution, of the predicted token against the runner-up; of a direction where there is no such head.

    Args:
        dtype: of the model, which the tolerance follows
        tokens, inputs: what the model is run on
    """
    target = None
    try:
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, names_filter=attribution_hooks(model), **inputs)
        target = _top_or_direction(cache)
        found = attribute(cache, target, check=False)
        forward = _forward(cache, target, found)
    except DecompositionError as error:  # what is compared on the way, whatever `check` says
        return Checked(None if target is None else target.name, (), " ".join(str(error).split()), False)
    except TLNormsError as error:
        return Checked(None if target is None else target.name, (), " ".join(str(error).split()), True)
    errors = [found.error] if found.source_error is None else [found.error, found.source_error]
    error = tuple(float(one) for part in errors for one in part)
    tolerance = WHOLE_MODEL[getattr(torch, dtype)]
    compared = error if forward is None else (*error, forward)
    return Checked(target.name, error, None, all(one <= tolerance for one in compared), forward)  # nan is not complete


@torch.no_grad()
def _forward(cache: Any, target: Target, found: Attribution) -> float | None:
    """Every token walked forward alone, against what the target, carried back, takes from it."""
    backward = found.tokens if found.source_tokens is None else torch.cat([found.tokens, found.source_tokens], -1)
    if backward.shape[-1] > _MOST_TOKENS:
        return None
    model_map = map_of(cache)
    last = model_map.stack.n_layers - 1
    walked = Measuring(Walk(model_map, 0, last), (last,), Length(), ending=read_targets(model_map, [target])).done()
    size = torch.maximum(backward.abs().amax(), found.value.abs().amax())
    return float((walked.scores - backward).abs().amax() / size.clamp_min(torch.finfo(size.dtype).tiny))


def _top_or_direction(cache: Any) -> Target:
    try:
        return top_target(cache)
    except TargetError:  # no head, or one of classes
        return direction(last_stream(cache)[0].mean(0).detach()).named("mean of the last stream")


def show_checked(found: Checked, console: Console | None = None) -> None:
    """The largest error of the attribution, or what stands in its way."""
    console = console or Console(highlight=False)
    if found.refused is not None:
        verdict = "refused" if found.complete else "NOT complete"
        line = f"attribution: {verdict}: {found.refused}"
    else:
        verdict = "complete" if found.complete else "NOT complete"
        largest = max(found.error, key=lambda error: (error != error, error))  # nan is the largest
        line = f"attribution of {found.target}: {verdict}, largest error over the cuts {largest:.1e}"
        line += "" if found.forward is None else f", tokens walked forward differ by {found.forward:.1e}"
    console.print(Text(line, "bold green" if found.complete and found.refused is None else "bold red"))
