"""What a result has to show as maps: its numbers, their name and unit, and whether they have a sign."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UnknownScopeError
from .errors import PlotInputError
from .stacks import STACKS, OneStack

NORM = "norm"
WEIGHTS = {"Attn-W": "attention weight", "AttnRes-W": "½ (attention weight + identity)"}
ABOUT = {
    "Attn-W": "Attention weights (Attn-W), mean over heads",
    "AttnRes-W": "½ (attention weights + identity) (AttnRes-W)",
}
_MEASURES = {"l2": NORM, "l1": "L1 norm", "alti": "ALTI contribution", "share": "share of the position's vector"}


@dataclass(frozen=True)
class Subject:
    """Maps of a result, by layer.

    Attributes:
        result: where they are from: it may know masks, tokens and the model's name
        name: of the scope, or of what else is shown
        unit: what the numbers are
        value: [layer *batch query key], of heads [layer *batch head query key]
        layers: the layer numbers along the first axis; None for maps that are not of layers
        ndim: axes of `value` without a batch axis
        about: the title of a figure, where it is not "name: unit"
    """

    result: Any
    name: str
    unit: str
    value: Tensor
    layers: tuple[int, ...]
    ndim: int
    about: str = ""

    @property
    def title(self) -> str:
        """What a figure of it is called."""
        return self.about or ABOUT.get(self.name) or ": ".join(filter(None, [self.name, self.unit]))

    @property
    def signed(self) -> bool:
        """Whether colours need a middle: contributions have a sign, norms have none."""
        finite = self.value[self.value.isfinite()]
        return bool(finite.numel()) and float(finite.min()) < -1e-9 * float(finite.abs().max())

    @property
    def causal(self) -> bool:
        """No query sees a later key; of plain numbers, told from zeros above the diagonal."""
        known = getattr(self.result, "causal", None)
        if known is not None:
            return bool(known)
        n, n_keys = self.value.shape[-2:]
        if n != n_keys or n < 2 or is_cross(self.result):
            return False
        upper = torch.ones(n, n, dtype=torch.bool, device=self.value.device).triu(1)
        return not bool((self.value.nan_to_num() * upper).any())


def maps_of(result: Any, scope: str | None = None) -> Subject:
    """The maps of all heads together.

    Raises:
        PlotInputError: the result has no maps.
        UnknownScopeError: not in this result.
    """
    if is_cross(result) and not _of_stack(result):
        if scope not in (None, "cross", "Attn-W"):
            raise UnknownScopeError(f"unknown scope {scope!r} of cross-attention: it has 'cross' and 'Attn-W'.")
        weights = scope == "Attn-W"
        value = result.attention.mean(-3) if weights else result.norms
        return Subject(result, *_weights() if weights else ("cross", NORM), value, tuple(result.layers), 3)
    if hasattr(result, "scopes"):
        name = result.scopes[-1] if scope is None else scope
        unit = WEIGHTS.get(name) or _measure(result)
        return Subject(result, name, unit, result[name], tuple(result.layers), 3)
    if scope is not None and not hasattr(result, "scope"):
        raise PlotInputError(f"{_kind(result)} has no scopes: leave scope out.")
    if hasattr(result, "before") and hasattr(result, "difference"):
        about = f"Change by the feed-forward, {result.scope}: {NORM}"
        value = result.difference
        return Subject(result, result.scope, f"change of {NORM}", value, tuple(result.layers), 3, about)
    if callable(getattr(result, "norms", None)) and hasattr(result, "layer"):  # a Decomposition
        return Subject(result, result.scope, _measure(result), result.norms()[None], (result.layer,), 3)
    if callable(getattr(result, "edges", None)):
        refuse_targets(result)
        value = torch.stack([edges_of(result, layer).sum(-3) for layer in result.layers])
        about = f"{contribution(result)} through {_of_stack(result) or 'attention'}"
        return Subject(result, "attention", "contribution", value, tuple(result.layers), 3, about)
    for name in ("norms", "maps", "values"):
        value = getattr(result, name, None)
        if isinstance(value, Tensor) and hasattr(result, "layers"):
            unit = _measure(result)
            about = f"What each position holds of every input token: {unit}"
            return Subject(result, "input tokens", unit, value, tuple(result.layers), 3, about)
    value = _plain(result)
    if value is None or not 2 <= value.ndim <= 4:
        raise PlotInputError(
            f"expected a BlockNorms or CrossNorms, another result with maps, or a tensor [layer *batch query key], got "
            f"{_kind(result)}{'' if value is None else f' of shape {list(value.shape)}'}."
        )
    value = value[None] if value.ndim == 2 else value
    return Subject(
        result, "", "value", value, tuple(range(len(value))), 3, "Values by layer" if len(value) > 1 else "Values"
    )


def heads_of(result: Any, weights: bool = False, layers: Any = None) -> Subject:
    """A map per head.

    Raises:
        PlotInputError: the result has none.
        UnknownScopeError: it was recorded without attention patterns.
    """
    if callable(getattr(result, "edges", None)):
        refuse_targets(result)
        if weights:
            raise PlotInputError("an attribution has contributions, no weights: pass the BlockNorms of the same text.")
        wanted = result.layers if layers is None else [layers] if isinstance(layers, int) else list(layers)
        known = [layer for layer in result.layers if layer in wanted]  # others are refused where layers are chosen
        if not known:
            raise PlotInputError(f"layers is {layers!r}; this result has {', '.join(map(str, result.layers))}.")
        value = torch.stack([edges_of(result, layer) for layer in known])
        stack = _of_stack(result)
        about = f"{contribution(result)} through heads{f' of {stack}' if stack else ''}"
        return Subject(result, "heads", "contribution", value, tuple(known), 4, about)
    if weights:
        if not is_cross(result) and getattr(result, "patterns", None) is None and not hasattr(result, "head_norms"):
            raise PlotInputError(f"{_kind(result)} holds no attention weights: pass a BlockNorms or CrossNorms.")
        name, about = "attention weights", "Attention weights per head"
        return Subject(result, name, WEIGHTS["Attn-W"], head_weights(result), tuple(result.layers), 4, about)
    name, about = "αf(x) per head", "Norms per head, ‖αf(x)‖"
    if hasattr(result, "head_norms"):
        return Subject(result, name, NORM, result.head_norms, tuple(result.layers), 4, about)
    value = _plain(result)
    if value is None or value.ndim not in (4, 5):
        raise PlotInputError(
            f"expected a BlockNorms, a CrossNorms, or a tensor [layer *batch head query key] such as "
            f"weighted_value_norms(cache), got {_kind(result)}{'' if value is None else f' {list(value.shape)}'}."
        )
    return Subject(result, name, NORM, value, tuple(range(len(value))), 4, about)


def head_weights(result: Any) -> Tensor:
    """The attention weights themselves, [layer *batch head query key]."""
    if is_cross(result):
        return result.attention
    moved = result.head_norms  # says what to do if the patterns were not kept
    return torch.stack([pattern.detach().to(moved.device, moved.dtype) for pattern in result.patterns])


def edges_of(result: Any, layer: int) -> Tensor:
    """The edges of a layer of an attribution, [*batch head query key]; zeros where the layer has no attention."""
    if _of_stack(result) or layer not in getattr(result, "unattended", ()):
        return _tensor(result.edges(layer))
    *batch, n_heads = result.heads[0].shape
    n = result.stream.shape[-1]
    return torch.zeros(*batch, n_heads, n, n)


def contribution(result: Any) -> str:
    """What the numbers of an attribution are, for a title."""
    target = getattr(result, "target_name", None)
    return f"Contribution to {target}" if target else "Contribution"


def refuse_targets(result: Any) -> None:
    """Refuse an attribution of several targets: a figure shows one.

    Raises:
        PlotInputError: it has several.
    """
    names = getattr(result, "target_name", None)
    if getattr(result, "has_targets", False) or isinstance(names, tuple):
        raise PlotInputError(
            f"a figure shows one target, this attribution has {len(names or ())} ({', '.join(map(str, names or ()))}): "
            f"attribute each by itself, attribute(cache, target)."
        )


def is_cross(result: Any) -> bool:
    """Whether the queries of a result are the decoder's and its keys the encoder's."""
    if isinstance(result, OneStack):
        return result.crossing
    return all(isinstance(getattr(result, name, None), Tensor) for name in ("norms", "attention"))


def _of_stack(result: Any) -> str:
    """What one stack of an encoder-decoder is called, "" for any other result."""
    return STACKS[result.stack] if isinstance(result, OneStack) else ""


def _weights() -> tuple[str, str]:
    return "Attn-W", WEIGHTS["Attn-W"]


def _measure(result: Any) -> str:
    measure = getattr(result, "measure", "l2")
    name = "l2" if callable(measure) else str(getattr(measure, "name", measure))
    if name == "onto":
        raise PlotInputError(
            "maps of Onto have a number for every direction: plot those of one, norms[scope][..., direction]."
        )
    return _MEASURES.get(name, name)


def _tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _plain(value: Any) -> Tensor | None:
    """Numbers without a class of their own."""
    return _tensor(value) if isinstance(value, Tensor | np.ndarray) else None


def _kind(result: Any) -> str:
    return type(result).__name__
