"""What is between the values' hook and the output projection of an attention: read off a short run.

The mixed values are recorded before the output projection (`o.hook_in`). If they are not pattern @ values, then a
clamp, another tensor holding the values, a gate or a norm is looked for that makes them so.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .forms import decided_norm, norm_kind
from .modules import unwrap
from .structure import Attention, Gate, NormKind
from .trace import Trace, same


def read_attention(
    module: nn.Module, trace: Trace, name: str, eps: float, kind: type[Attention] = Attention
) -> Attention:
    """An attention step of a block; its plainest form if the short run cannot tell (the cache will)."""
    at = f"{trace.prefix}.{name}"
    pattern, mixed = trace(f"{name}.hook_pattern"), trace(f"{name}.o.hook_in")
    values = f"{name}.v.hook_out"
    heads_first = False
    if trace(values) is None:
        values = f"{name}.hook_v"
        hooked = trace(values)
        if hooked is not None and mixed is not None:
            heads_first = hooked.ndim == 4 and hooked.shape[1] != mixed.shape[1]
    if trace(values) is None:
        values = f"{name}.v_norm.hook_out"
    plain = kind(
        at,
        f"{at}.hook_pattern",
        f"{trace.prefix}.{values}",
        heads_first,
        output=f"{at}.o.hook_out",
        mixed=f"{at}.o.hook_in",
    )
    eager = getattr(getattr(unwrap(module), "config", None), "_attn_implementation", None) == "eager"
    if pattern is None and eager:
        raise UnsupportedArchitectureError(
            f"{at} ({type(unwrap(module)).__name__}) exposes no attention pattern although it runs eager attention: "
            f"TransformerLens does not hook it (or the attention never forms one)."
        )
    clip = _configured_clip(module)
    if pattern is None or mixed is None or pattern.ndim != 4:
        return replace(plain, clip=clip)
    for candidate in _candidates(module, plain, trace, name, clip):
        made = _mixed(candidate, trace, pattern, mixed)
        if made is None:
            continue
        if candidate.inner_norm is not None:
            try:
                inner = getattr(unwrap(module), candidate.inner_norm.rpartition(".")[2])
                return replace(candidate, inner_kind=_inner_kind(inner, made.flatten(2), mixed, eps))
            except UnsupportedArchitectureError:
                continue
        if same(made.flatten(), mixed.flatten().to(made.dtype)):
            return candidate
    raise UnsupportedArchitectureError(
        f"{at} ({type(unwrap(module)).__name__}): what enters its output projection is not its pattern applied to its "
        f"values, nor that after a clamp, a gate or a norm that is understood. Either its hook_pattern or hook_v does "
        f"not hold what attention used, or the attention is of a new kind."
    )


def _configured_clip(module: nn.Module) -> float | None:
    """What a model's configuration bounds the values by: a few tokens may never reach it."""
    inner = unwrap(module)
    config = getattr(inner, "config", None)
    owners = (config, getattr(config, "attn_config", None), inner)
    clips = [getattr(owner, "clip_qkv", None) for owner in owners]
    return next((float(clip) for clip in clips if isinstance(clip, (int, float)) and clip), None)


def _candidates(
    module: nn.Module, plain: Attention, trace: Trace, name: str, clip: float | None
) -> Iterator[Attention]:
    if clip is not None:  # before the plain ones: values that do not reach the clip look the same without it
        yield replace(plain, clip=clip)
        yield replace(plain, clip=clip, heads_first=not plain.heads_first)
    yield plain
    yield replace(plain, heads_first=not plain.heads_first)
    if trace(f"{name}.v_norm.hook_out") is not None:
        yield replace(plain, values=f"{trace.prefix}.{name}.v_norm.hook_out")
    for hook in trace.elsewhere(f"{name}.v_norm.hook_out"):  # values shared between layers: the last one's first
        yield replace(plain, values=hook)
    for hook in ("hook_q_gate", "gate.hook_out", "hook_gate"):
        if trace(f"{name}.{hook}") is not None:
            for function in ("sigmoid", "softplus", "silu", "tanh"):
                yield replace(plain, gate=Gate(f"{trace.prefix}.{name}.{hook}", function))
    for child, inner in unwrap(module).named_children():
        if "norm" in type(inner).__name__.lower() and child not in ("q_norm", "k_norm", "q_layernorm", "k_layernorm"):
            yield replace(plain, inner_norm=f"{plain.module}.original_component.{child}")


def _mixed(candidate: Attention, trace: Trace, pattern: Tensor, mixed: Tensor) -> Tensor | None:
    """The mixed values by this candidate, before its inner norm: [b q h d_head]; None if shapes do not fit."""
    values = trace.anywhere(candidate.values)
    gate = None if candidate.gate is None else trace.anywhere(candidate.gate.hook)
    if values is None or (candidate.gate is not None and gate is None):
        return None
    n_batch, n_heads, n_queries, n_keys = pattern.shape
    d_head = mixed.numel() // (n_batch * n_queries * n_heads)
    try:
        arranged = arrange_values(candidate, values, n_heads, d_head)
        made = torch.einsum("bhqk,bkhd->bqhd", pattern.to(arranged.dtype), arranged)
        return made if candidate.gate is None else made * gate_values(candidate.gate, gate, made)
    except RuntimeError:  # shapes that do not belong together: not this candidate
        return None


def _inner_kind(inner: nn.Module, made: Tensor, mixed: Tensor, eps: float) -> NormKind:
    """The form of a norm before the output projection, if that norm makes what enters it of these mixed values."""
    decided_norm(inner, made, mixed.reshape(made.shape), eps)
    return norm_kind(inner, eps, made.shape[-1], made.dtype, made.device)


def arrange_values(step: Attention, values: Tensor, n_heads: int, d_head: int) -> Tensor:
    """Values as [b k h d_head], clipped if the model clips them, grouped heads repeated."""
    if step.heads_first:
        values = values.transpose(1, 2)
    values = values.reshape(*values.shape[:2], -1, d_head)
    if step.clip is not None:
        values = values.clamp(-step.clip, step.clip)
    group = n_heads // values.shape[2]
    return values if group == 1 else values.repeat_interleave(group, dim=2)


def gate_values(gate: Gate, hooked: Tensor, like: Tensor) -> Tensor:
    """The factor for every mixed value, [b q h d_head] or [b q h 1]; `like` is [b q h d_head]."""
    function = getattr(torch, gate.function, None) or getattr(torch.nn.functional, gate.function)
    factor = function(hooked)
    n_batch, n_queries, n_heads, d_head = like.shape
    width = factor.numel() // (n_batch * n_queries)
    return factor.reshape(n_batch, n_queries, n_heads, d_head if width == n_heads * d_head else 1)
