"""Hold an attention with its softmax integrated: its pattern rebuilt from held queries and keys, and compared."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .blocks.logit_path import LogitPath, LogitSide
from .blocks.modules import unwrap
from .blocks.position import Around, around, turning
from .blocks.structure import Attention, Reader
from .blocks.values import find
from .errors import DecompositionError
from .freeze_paths import PathInTheMaking
from .linear.integrated_attention import IntegratedAttention, hold_integrated_attention
from .linear.operators import Chain, Parallel, Scaling, SplitHeads, applied
from .linear.pieces import is_card, short_products
from .linear.required import judged

_QUADRATURE = {torch.float64: 1e-10}
_QUADRATURE_FLOAT32 = 1e-5


def hold_logits(
    reader: Reader,
    path: LogitPath,
    attention: Attention,
    x: Float[Tensor, "b q d"],
    source: Float[Tensor, "b k d"] | None,
    values: Chain,
    pattern: Float[Tensor, "b h q k"],
    tolerance: float,
) -> tuple[IntegratedAttention, ...]:
    """Attention of x (keys and values from `source`, if it is given), held.

    Args:
        values: the value path
        pattern: the run's, zero where masked

    Raises:
        DecompositionError: the pattern rebuilt is not the run's, or its integrals are not exact.
        UnsupportedArchitectureError: the way to the logits is another one than that of the short run.
    """
    n_queries, n_keys = pattern.shape[-2:]
    things = around(reader, attention, max(n_queries, n_keys))
    n_heads = pattern.shape[1]
    queries = _side(reader, path, path.queries, attention, x, things, n_heads)
    width = applied(queries, x).shape[-1]
    keys = _side(reader, path, path.keys, attention, x if source is None else source, things, n_heads, width)
    added = things.bias(path.added, n_queries, n_keys).to(x) * path.factor if path.added else None
    inner = unwrap(find(reader.model, attention.module))
    sink = getattr(inner, path.sink).detach().to(x) if path.sink else None
    visible = _visible(path, applied(queries, x), applied(keys, x if source is None else source), added, pattern)
    held = hold_integrated_attention(
        x,
        queries,
        keys,
        values,
        source=source,
        scale=path.scale,
        visible=visible,
        softcap=path.cap,
        added=added,
        sink=sink,
    )
    _check(attention, held[0], pattern, tolerance)
    return held


def _side(
    reader: Reader,
    path: LogitPath,
    side: LogitSide,
    attention: Attention,
    x: Tensor,
    things: Around,
    n_heads: int,
    width: int | None = None,
) -> Chain:
    """The queries (no width given) or the keys as one operator, scales and clamps held at the real x."""
    held, norm = PathInTheMaking(reader, x), side.norm
    for step in side.steps:
        held.take(step)
    if side.shared:
        beside = PathInTheMaking(reader, x)
        for step in side.shared:
            beside.take(step)
        both = Parallel((Chain(tuple(held.steps)), Chain(tuple(beside.steps))))
        held = PathInTheMaking(reader, x)
        held.add(both)
    if norm is not None and side.whole:
        held.add(held.norm(norm))
    held.clamp(attention.clip)
    n_kv = n_heads if width is None else held.made.shape[-1] // width
    per_head = norm if norm is not None and not side.whole else None
    held.add(SplitHeads(n_kv, n_heads // n_kv))
    if per_head is not None and not side.behind:
        held.add(held.norm(per_head))
    if path.turned:
        rotary = turning(things.rotary, path.turned, x.shape[1], path.last)
        held.add(replace(rotary, cos=rotary.cos.to(x), sin=rotary.sin.to(x)))
    if per_head is not None and side.behind:
        held.add(held.norm(per_head))
    if path.tuned and width is None:
        held.add(Scaling(things.tuned[path.tuned][: x.shape[1], None, None].to(x)))
    return Chain(tuple(held.steps))


def _visible(
    path: LogitPath, q: Tensor, k: Tensor, added: Tensor | None, pattern: Float[Tensor, "b h q k"]
) -> Bool[Tensor, "b h q k"]:
    """Keys that a mask leaves: those attended to, and those so weak that their weight is too small to be a number.

    The latter only at distances and to keys that are attended to somewhere: masks go by distance and by key.
    """
    seen = pattern > 0
    if not is_card(seen.device) and bool(seen.all()):  # a card would wait once more for that
        return seen
    n_queries, n_keys = pattern.shape[-2:]
    apart = torch.arange(n_queries, device=seen.device)[:, None] - torch.arange(n_keys, device=seen.device)
    apart = apart + n_keys - 1
    known = torch.zeros(n_queries + n_keys, dtype=torch.int32, device=seen.device)
    known.index_add_(0, apart.flatten(), seen.flatten(0, 1).any(0).int().flatten())
    could = ~seen & (known[apart] > 0) & seen.any(-1, keepdim=True) & seen.any(1, keepdim=True).any(-2, keepdim=True)
    if not bool(could.any()):
        return seen
    logits = torch.einsum("bqhc,bkhc->bhqk", q, k) * path.scale
    logits = logits if path.cap is None else path.cap * torch.tanh(logits / path.cap)
    logits = logits if added is None else logits + added
    total = logits.masked_fill(~seen, -torch.inf).logsumexp(-1, keepdim=True)
    return seen | (could & (logits - total < -80))


def _check(attention: Attention, held: IntegratedAttention, pattern: Tensor, tolerance: float) -> None:
    made = held.path.pattern[..., : pattern.shape[-1]]

    def judge(error: float) -> None:
        if error <= tolerance:
            return
        raise DecompositionError(
            f"{attention.module}: the pattern rebuilt from queries and keys misses {attention.pattern} by {error:.1e} "
            f"(tolerance {tolerance:.0e}). Likely causes: a hook edited queries, keys or the pattern during the run, "
            f'or the model\'s weights changed since. What it moved works: attention="held".'
        )

    if pattern.numel():
        judged(made.sub_(pattern).abs_().amax(), judge)
    accepted = _QUADRATURE.get(pattern.dtype, _QUADRATURE_FLOAT32)
    if not held.path.error <= accepted:
        raise DecompositionError(
            f"{attention.module}: the integrals over its softmax agree to {held.path.error:.1e} only with "
            f"{len(held.path.nodes)} nodes (needed {accepted:.0e}): {_why(pattern.device)}. What it moved works: "
            f'attention="held".'
        )


def _why(device: torch.device) -> str:
    if short_products(device):
        return (
            "float32 products are rounded to TF32 (before the run: torch.backends.cuda.matmul.fp32_precision = 'ieee')"
        )
    return "its logits span too much"
