"""What stands between the values' hook and the output projection of an attention: read off a short run.

The mixed values are recorded in front of the output projection (`o.hook_in`). If they are not pattern @ values, then a
clamp, another tensor holding the values, a gate or a norm is looked for that makes them so.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .modules import unwrap
from .structure import Attention, Gate
from .trace import Trace, distance, rounding, same


def read_attention(module: nn.Module, trace: Trace, name: str, kind: type[Attention] = Attention) -> Attention:
    """An attention step of a block; its plainest form if the short run cannot tell (the cache will)."""
    at = f"{trace.prefix}.{name}"
    pattern, mixed = trace(f"{name}.hook_pattern"), trace(f"{name}.o.hook_in")
    values = f"{name}.v.hook_out"
    heads_first = False
    if trace(values) is None:
        values = f"{name}.hook_v"
        found = trace(values)
        heads_first = found is not None and mixed is not None and found.ndim == 4 and found.shape[1] != mixed.shape[1]
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
    if pattern is None or mixed is None or pattern.ndim != 4:
        return plain
    for candidate in _candidates(module, plain, trace, name):
        if _explains(candidate, module, trace, name, pattern, mixed):
            return candidate
    if mixed.element_size() <= 2:  # half precision is too coarse to rule anything out here; the cache will be checked
        return plain
    raise UnsupportedArchitectureError(
        f"{at} ({type(unwrap(module)).__name__}): what enters its output projection is not its pattern applied to its "
        f"values, nor that behind a clamp, a gate or a norm that is understood. Either its hook_pattern or hook_v does "
        f"not hold what attention used, or the attention is of a new kind."
    )


def _candidates(module: nn.Module, plain: Attention, trace: Trace, name: str) -> Iterator[Attention]:
    yield plain
    yield replace(plain, heads_first=not plain.heads_first)
    if trace(f"{name}.v_norm.hook_out") is not None:
        yield replace(plain, values=f"{trace.prefix}.{name}.v_norm.hook_out")
    for hook in trace.elsewhere(f"{name}.v_norm.hook_out"):  # values shared between layers: the last one's first
        yield replace(plain, values=hook)
    clip = getattr(getattr(unwrap(module), "config", None), "clip_qkv", None)
    if clip:
        yield replace(plain, clip=float(clip))
    for hook in ("hook_q_gate", "gate.hook_out", "hook_gate"):
        if trace(f"{name}.{hook}") is not None:
            for function in ("sigmoid", "softplus", "silu", "tanh"):
                yield replace(plain, gate=Gate(f"{trace.prefix}.{name}.{hook}", function))
    for child, inner in unwrap(module).named_children():
        if "norm" in type(inner).__name__.lower() and child not in ("q_norm", "k_norm", "q_layernorm", "k_layernorm"):
            yield replace(plain, inner_norm=f"{plain.module}.original_component.{child}")


def _explains(candidate: Attention, module: nn.Module, trace: Trace, name: str, pattern: Tensor, mixed: Tensor) -> bool:
    values = trace.anywhere(candidate.values)
    if values is None:
        return False
    n_batch, n_heads, n_queries, n_keys = pattern.shape
    d_head = mixed.numel() // (n_batch * n_queries * n_heads)
    try:
        arranged = arrange_values(candidate, values, n_heads, d_head)
        made = torch.einsum("bhqk,bkhd->bqhd", pattern.to(arranged.dtype), arranged)
    except RuntimeError:  # shapes that do not belong together: not this candidate
        return False
    if candidate.gate is not None:
        gate = trace.anywhere(candidate.gate.hook)
        assert gate is not None
        made = made * gate_values(candidate.gate, gate, made)
    if candidate.inner_norm is not None:
        inner = getattr(unwrap(module), candidate.inner_norm.rpartition(".")[2])
        made = inner(made.flatten(2))
    if candidate.gate is None and candidate.inner_norm is None:
        return same(made.flatten(), mixed.flatten().to(made.dtype))
    # transformers may compute these two in float32 whatever the model's dtype
    coarse = max(rounding(made.dtype), rounding(torch.float32))
    return distance(made.flatten(), mixed.flatten().to(made.dtype)) <= coarse


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
