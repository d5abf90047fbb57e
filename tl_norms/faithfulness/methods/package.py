"""The package's own attributions and maps, and the whole-model methods of others, as scores of the input tokens.

Everything is looked up when it is used: what this version of the package does not have is not offered.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..running import device_of
from ..targets import Target
from .reading import row
from .reference import Baseline, reference_token

MAPS = (
    "attention_rollout",
    "attention_flow",
    "norm_rollout",
    "globenc",
    "alti",
    "value_zeroing",
    "decompx",
    "information_flow",
)


def has(name: str, module: str = "tl_norms") -> bool:
    """Whether this version of the package has a public function."""
    try:
        found = importlib.import_module(module)
        return callable(getattr(found, name, None))
    except ImportError:
        return False


def attribute(
    model: nn.Module,
    tokens: Int[Tensor, "1 pos"],
    target: Target,
    ff: str = "ig",
    attention: str = "held",
    baseline: Baseline = None,
) -> Float[Tensor, " pos"]:
    """`tl_norms.attribute(...).tokens`: complete attributions."""
    reference = None if baseline is None else reference_token(model, baseline)
    function = _function("attribute")
    options: dict[str, Any] = {"ff": ff, "attention": attention, "baseline": reference}
    return function(_cache(model, tokens), target.exact(tokens.shape[1]), **options).tokens[0]


def direct(model: nn.Module, tokens: Int[Tensor, "1 pos"], target: Target) -> Float[Tensor, " pos"]:
    """`tl_norms.direct_attribution`: heads by source token, summed over layers; the rest at the target's position."""
    found = _function("direct_attribution")(_cache(model, tokens), target.exact(tokens.shape[1]))
    scores = found.heads[:, 0].sum((0, 1)).clone()
    scores[target.at] += found.embed[0] + found.ffn[:, 0].sum()
    return scores


def lengths(model: nn.Module, tokens: Int[Tensor, "1 pos"], target: Target) -> Float[Tensor, " pos"]:
    """`tl_norms.propagate(...).norms`: how long each token's part of the last state is."""
    return row(_function("propagate")(_cache(model, tokens)).norms[-1, 0], target)


def rolled_out(model: nn.Module, tokens: Int[Tensor, "1 pos"], target: Target, name: str) -> Float[Tensor, " pos"]:
    """A method of `tl_norms.methods`, composed over all layers."""
    return row(_function(name, "tl_norms.methods")(_cache(model, tokens)).rollout[-1, 0], target)


def alti_logit(model: nn.Module, tokens: Int[Tensor, "1 pos"], target: Target) -> Float[Tensor, " pos"]:
    """`tl_norms.methods.alti_logit`, summed over layers."""
    return _function("alti_logit", "tl_norms.methods")(_cache(model, tokens), target.exact(tokens.shape[1]))[:, 0].sum(
        0
    )


def variants() -> dict[str, tuple[Callable[..., Tensor], Callable[[], bool]]]:
    """Name -> (function, whether it is there), in the order of tables."""
    complete = partial(has, "attribute")
    found: dict[str, tuple[Callable[..., Tensor], Callable[[], bool]]] = {"attribute": (attribute, complete)}
    for rule in ("half", "gate", "drop"):
        found[f"attribute ff={rule}"] = (partial(attribute, ff=rule), complete)
    found["attribute baseline"] = (partial(attribute, baseline="space"), complete)
    found["attribute integrated"] = (partial(attribute, attention="integrated"), complete)
    found["attribute integrated baseline"] = (partial(attribute, attention="integrated", baseline="space"), complete)
    found["direct"] = (direct, partial(has, "direct_attribution"))
    found["lengths"] = (lengths, partial(has, "propagate"))
    for name in MAPS:
        found[name.replace("_", "-")] = (partial(rolled_out, name=name), partial(has, name, "tl_norms.methods"))
    found["alti-logit"] = (alti_logit, partial(has, "alti_logit", "tl_norms.methods"))
    return found


def _function(name: str, module: str = "tl_norms") -> Any:
    return getattr(importlib.import_module(module), name)


def _cache(model: Any, tokens: Tensor) -> Any:
    with torch.no_grad():
        return model.run_with_cache(tokens.to(device_of(model)))[1]
