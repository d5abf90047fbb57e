"""What a model gives its attentions by position alone: rotary embeddings, ALiBi, relative biases.

Listened to on a run of the model over as many tokens, whichever they are: nothing here depends on them. All of it is
relative, up to what a whole row shares, so that padding on the left changes nothing.
"""

import warnings
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..linear.heads import Rotary
from .compat import without_switches, without_user_hooks
from .modules import unwrap
from .structure import Attention, Reader
from .values import find

ADDED = ("alibi", "position_bias", "relative")
TURNS = ("halves", "neighbours", "neighbours, half", "neighbours, double", "halves, double", "halves, back")


@dataclass(frozen=True)
class Around:
    """What stands around one attention.

    Attributes:
        rotary: cosines and sines, [pos r]
        added: by name, [h or 1, q or 1, k]
        tuned: what queries are multiplied with, by name, [pos]
        d_head: of queries and keys
    """

    rotary: tuple[Tensor, Tensor] | None
    added: dict[str, Tensor] = field(default_factory=dict)
    d_head: int = 1
    tuned: dict[str, Tensor] = field(default_factory=dict)

    @property
    def turns(self) -> tuple[str, ...]:
        return TURNS

    def bias(self, name: str, n_queries: int, n_keys: int) -> Tensor:
        """[1 h q k]."""
        whole = self.added[name]
        whole = whole[..., -n_keys:] if name == "position_bias" and whole.shape[1] == 1 else whole[..., :n_keys]
        return whole[None, :, :n_queries] if whole.shape[1] > 1 else whole[None]


_heard: "weakref.WeakKeyDictionary[nn.Module, tuple[int, dict[str, dict[str, Any]]]]" = weakref.WeakKeyDictionary()


def around(reader: Reader, attention: Attention, n: int) -> Around:
    """What the model gives one attention for n positions."""
    model = reader.model
    module = find(model, attention.module)
    if not hasattr(model, "adapter"):
        return _hooked(model, module, n)
    inner = unwrap(module)
    given = _given(model, n).get(attention.module, {})
    added = {}
    for name in ("alibi", "position_bias"):
        value = given.get(name)
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.reshape(-1, *value.shape[-2:]) if value.ndim != 4 else value[0]
            added[name] = value.detach()
    relative = _relative(reader, attention, inner, n)
    if relative is not None:
        added["relative"] = relative
    heads = getattr(inner, "head_dim", None) or getattr(inner, "key_value_proj_dim", None) or model.cfg.d_head
    pair = _pair(given.get("position_embeddings"))
    return Around(_native(inner, n) if pair is None else pair, added, int(heads), _tuned(inner, n))


def _hooked(model: Any, module: Any, n: int) -> Around:
    kind, added = getattr(model.cfg, "positional_embedding_type", ""), {}
    if kind == "alibi":
        added["alibi"] = module.create_alibi_bias(model.cfg.n_heads, n, model.cfg.device)
    rotary = (module.rotary_cos[:n], module.rotary_sin[:n]) if kind == "rotary" else None
    return Around(rotary, added, model.cfg.d_head)


def _pair(given: Any) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines: at position 0 the sines are zero."""
    if isinstance(given, Tensor) and given.is_complex():
        given = (given.real, given.imag)
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(isinstance(g, Tensor) for g in given):
        return None
    first, second = (g.detach().reshape(-1, *g.shape[-2:])[0] for g in given)
    return (second, first) if not bool(first[0].any()) else (first, second)


def _native(inner: nn.Module, n: int) -> tuple[Tensor, Tensor] | None:
    """The tables of TransformerLens' own models, which their attentions hold themselves."""
    own = getattr(inner, "rotary", None)
    cos, sin = getattr(own, "cos_cached", None), getattr(own, "sin_cached", None)
    return (cos[:n], sin[:n]) if isinstance(cos, Tensor) and isinstance(sin, Tensor) else None


def _tuned(inner: nn.Module, n: int) -> dict[str, Tensor]:
    """Queries scaled by position for long texts: Ministral 3 everywhere, Llama 4 where nothing is turned."""
    config, positions = getattr(inner, "config", None), torch.arange(n, dtype=torch.float32)
    rope = getattr(config, "rope_parameters", None)
    beta = rope.get("llama_4_scaling_beta") if isinstance(rope, dict) else None
    if isinstance(rope, dict) and isinstance(beta, (int, float)):
        longest = rope["original_max_position_embeddings"]
        return {"llama_4_scaling_beta": 1 + beta * torch.log(1 + torch.floor(positions / longest))}
    if getattr(inner, "attn_temperature_tuning", False) and not getattr(inner, "use_rope", True):
        scale, floor = float(getattr(inner, "attn_scale", 0.0)), float(getattr(inner, "floor_scale", 1.0))
        return {"floor_scale": torch.log1p(torch.floor((positions + 1) / floor)) * scale + 1}
    return {}


def turning(rotary: tuple[Tensor, Tensor] | None, name: str, n: int, last: bool = False) -> Rotary:
    """The rotary embedding of n positions: pairs are halves or neighbours, angles once or twice per pair."""
    if rotary is None:
        raise ValueError(f"{name}: there is no rotary embedding")
    pairs, _, spread = name.partition(", ")
    angles = [part[:n] for part in rotary]
    if spread == "half":  # given twice, the second half a copy of the first
        angles = [part[..., : part.shape[-1] // 2].repeat_interleave(2, -1) for part in angles]
    elif spread == "double":
        double = pairs == "neighbours"
        angles = [part.repeat_interleave(2, -1) if double else torch.cat([part, part], -1) for part in angles]
    elif spread == "back":  # turned the other way round
        angles = [angles[0], -angles[1]]
    return Rotary(*angles, interleaved=pairs == "neighbours", last=last)


def _relative(reader: Reader, attention: Attention, inner: nn.Module, n: int) -> Tensor | None:
    """T5's bias by buckets of distance: the first layer's, for all of them."""
    if not hasattr(inner, "compute_bias"):
        return None
    stack, name = attention.module.split(".")[0], attention.module.rpartition(".")[2]
    first = unwrap(find(reader.model, f"{stack}.0.{name}"))
    if not getattr(first, "has_relative_attention_bias", False):
        return None
    with torch.no_grad():
        return rearrange(
            first.compute_bias(n, n, device=first.relative_attention_bias.weight.device), "1 h q k -> h q k"
        )


def _given(model: nn.Module, n: int) -> dict[str, dict[str, Any]]:
    """What the attentions of a bridge are called with, for n tokens; kept for the last n asked for."""
    known = _heard.get(model)
    if known is not None and known[0] == n:
        return known[1]
    heard: dict[str, dict[str, Any]] = {}
    handles = []

    def listener(path: str):
        def listen(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            heard[path] = {name: kwargs.get(name) for name in ("position_embeddings", "alibi", "position_bias")}

        return listen

    stacks = [name for name, _ in model.named_children() if name.endswith("blocks")]
    for stack in stacks:
        for layer, block in enumerate(getattr(model, stack)):
            for name, part in block.named_children():
                path = f"{stack}.{layer}.{name}"
                handles.append(part.register_forward_pre_hook(listener(path), with_kwargs=True))
    try:
        _run(model, n)
    finally:
        for handle in handles:
            handle.remove()
    _heard[model] = (n, heard)
    return heard


def _run(model: Any, n: int) -> None:
    size = int(getattr(model.cfg, "d_vocab", 0) or 0)
    tokens = ((torch.arange(n) + 5) % size if size > 0 else torch.arange(n))[None].to(next(model.parameters()).device)
    extra = {"decoder_input": tokens} if hasattr(model, "decoder_blocks") else {}
    with torch.no_grad(), without_switches(model), without_user_hooks(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.run_with_cache(tokens, names_filter=lambda name: False, **extra)
