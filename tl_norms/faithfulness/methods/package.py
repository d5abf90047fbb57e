"""The package's own attributions and maps, and the whole-model methods of others, as scores of the input tokens.

Everything is looked up when it is used: what this version of the package does not have is not offered.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..running import cache_of, device_of
from ..targets import Target
from .reading import row, rows
from .reference import Baseline, reference_token

MAPS = (
    "attention_rollout",
    "attention_flow",
    "norm_rollout",
    "globenc",
    "alti",
    "value_zeroing",
    "information_flow",
)


def has(name: str, module: str = "tl_norms", option: str | None = None) -> bool:
    """Whether this version of the package has a public function, and that option of it."""
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return False
    return callable(function) and (option is None or option in inspect.signature(function).parameters)


def attribute(
    model: nn.Module,
    tokens: Int[Tensor, "batch pos"],
    target: Target,
    ff: str = "ig",
    attention: str = "held",
    baseline: Baseline = None,
) -> Float[Tensor, "batch pos"]:
    """`tl_norms.attribute(...).tokens`: complete attributions."""
    reference = None if baseline is None else reference_token(model, baseline)
    given = {"ff": (ff, "ig"), "attention": (attention, "held"), "baseline": (reference, None)}
    options: dict[str, Any] = {name: value for name, (value, default) in given.items() if value != default}
    return _function("attribute")(cache_of(model, tokens), target.exact(tokens.shape[1]), **options).tokens


def direct(model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target) -> Float[Tensor, "batch pos"]:
    """`tl_norms.direct_attribution`: heads by source token, summed over layers; the rest at the target's position."""
    found = _function("direct_attribution")(cache_of(model, tokens), target.exact(tokens.shape[1]))
    scores = found.heads.sum((0, 2)).clone()
    scores[:, target.at] += found.embed + found.ffn.sum(0)
    return scores


def lengths(model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target) -> Float[Tensor, "batch pos"]:
    """`tl_norms.propagate(...).norms`: how long each token's part of the last state is."""
    last = int(model.cfg.n_layers) - 1  # type: ignore[union-attr]
    return row(_function("propagate")(cache_of(model, tokens), layers=last, progress=False).norms[-1], target)


def rolled_out(
    model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target, name: str
) -> Float[Tensor, "batch pos"]:
    """A method of `tl_norms.methods`, composed over all layers."""
    return row(_function(name, "tl_norms.methods")(cache_of(model, tokens)).rollout[-1], target)


def attention_flow(model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target) -> Float[Tensor, "batch pos"]:
    """`tl_norms.methods.attention_flow` from above the last layer, and from the positions that are read only."""
    maps = _function("attention_rollout", "tl_norms.methods")(cache_of(model, tokens)).maps
    flows = _function("attention_flow")(maps, last_only=True, queries=rows(target, tokens.shape[1]))[-1]
    return flows.mean(-2).to(device_of(model))


def alti_logit(model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target) -> Float[Tensor, "batch pos"]:
    """`tl_norms.methods.alti_logit`, summed over layers."""
    return _function("alti_logit", "tl_norms.methods")(cache_of(model, tokens), target.exact(tokens.shape[1])).sum(0)


def decompx(model: nn.Module, tokens: Int[Tensor, "batch pos"], target: Target) -> Float[Tensor, "batch pos"]:
    """`tl_norms.methods.decompx`, read at the target."""
    exact = target.exact(tokens.shape[1])
    return _function("scores_alone", "tl_norms.methods.decompx")(cache_of(model, tokens), exact, progress=False)


def variants() -> dict[str, tuple[Callable[..., Tensor], Callable[[], bool]]]:
    """Name -> (function, whether it is there), in the order of tables."""
    complete = partial(has, "attribute")
    found: dict[str, tuple[Callable[..., Tensor], Callable[[], bool]]] = {"attribute": (attribute, complete)}
    for rule in ("half", "gate", "drop"):
        found[f"attribute ff={rule}"] = (partial(attribute, ff=rule), complete)
    baseline, integrated = (partial(has, "attribute", option=option) for option in ("baseline", "attention"))
    found["attribute baseline"] = (partial(attribute, baseline="space"), baseline)
    found["attribute integrated"] = (partial(attribute, attention="integrated"), integrated)
    both: Callable[..., Tensor] = partial(attribute, attention="integrated", baseline="space")
    found["attribute integrated baseline"] = (both, lambda: baseline() and integrated())
    found["direct"] = (direct, partial(has, "direct_attribution"))
    found["lengths"] = (lengths, partial(has, "propagate"))
    for name in MAPS:
        function = attention_flow if name == "attention_flow" else partial(rolled_out, name=name)
        found[name.replace("_", "-")] = (function, partial(has, name, "tl_norms.methods"))
    found["decompx"] = (decompx, partial(has, "decompx", "tl_norms.methods"))
    found["alti-logit"] = (alti_logit, partial(has, "alti_logit", "tl_norms.methods"))
    return found


def _function(name: str, module: str = "tl_norms") -> Any:
    return getattr(importlib.import_module(module), name)
