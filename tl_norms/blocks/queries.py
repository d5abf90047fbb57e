"""How attention's logits come from the stream, as names: found on a short run of the model, decided once.

    pre-norm . multiplier . W_Q, b_Q . heads split . norm . rotary embedding (norm before or behind it)     queries
    the same with W_K                                                                                       keys
    logits = softcap(scale <q, k>) + what the model adds by position (ALiBi, T5); a sink beside them
    latent attention: down-projection, norm, up-projection; beside it the turned columns, which all heads share

Candidates are compared with the short run's own pattern: log p of a row, less its mean, is its logits, less theirs,
whatever the sink. Position embeddings are the model's own (see `position`), never fitted. Every cache is compared again
when its attention is held.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..linear.heads import Rotary
from .logit_path import LogitPath, LogitSide, Weighed, refused
from .logit_sides import side_candidates
from .modules import float_attributes, unwrap
from .position import ADDED, Around, around, turning
from .structure import Attention, Block, CrossAttention, Reader, Step
from .trace import distance
from .values import Normed, find, run_norm, value_paths, weights_of
from .whole_run import known, whole_run

_CLOSE = {torch.float64: 1e-4, torch.float32: 1e-3}  # of logits: transformers computes softmaxes in float32
_HALF = 5e-2
_EXACT = 1e-6  # a scale that the model holds nowhere by name is believed if the logits fit this well


def logit_paths(reader: Reader) -> Mapping[str, LogitPath]:
    """The way to the logits of every attention of this stack, by the attention's module path.

    Raises:
        UnsupportedArchitectureError: the pattern of some attention is not explained by any way that is known.
    """
    read = known(reader.model)
    if ("logits", reader.stack) not in read:
        read["logits", reader.stack] = dict(_all_paths(reader))
    return read["logits", reader.stack]


def _all_paths(reader: Reader) -> Iterator[tuple[str, LogitPath]]:
    bridge = hasattr(reader.model, "adapter")
    for block in reader.blocks():
        for step in block.steps if block is not None else ():
            if isinstance(step.operation, Attention):
                path = _found(reader, block, step) if bridge else _hooked(reader, block, step.operation)
                yield step.operation.module, path


def _hooked(reader: Reader, block: Block, attention: Attention) -> LogitPath:
    """TransformerLens' own classes: known from the configuration."""
    cfg, kind = reader.model.cfg, type(attention)
    module = find(reader.model, attention.module)
    positions = getattr(cfg, "positional_embedding_type", "standard")
    if kind is CrossAttention or positions not in ("standard", "rotary", "alibi"):
        raise refused(
            reader, attention, "its queries and keys are of a kind that is not read in TransformerLens' own classes"
        )
    path = value_paths(reader)[attention.module]
    before = tuple(step for step in path.steps if isinstance(step, Normed))
    sides = []
    for letter in "QK":
        name = f"{letter.lower()}_norm"
        own = getattr(module, name, None)
        norm = None if own is None else Normed(f"{attention.module}.{name}")
        whole = own is not None and own.w.shape[-1] != cfg.d_head  # OLMo 2: on all heads side by side
        sides.append(LogitSide(path.layer, (*before, Weighed(attention.module, letter)), (), norm, whole))
    cap = float(getattr(cfg, "attn_scores_soft_cap", 0) or 0)
    turned = "" if positions != "rotary" else "neighbours" if cfg.rotary_adjacent_pairs else "halves"
    scale = 1 / float(getattr(module, "attn_scale", 1.0))
    added = "alibi" if positions == "alibi" else ""
    return LogitPath(*sides, turned, scale=scale, cap=cap if cap > 0 else None, added=added)


def _found(reader: Reader, block: Block, step: Step) -> LogitPath:
    """The candidate closest to the pattern of the short run."""
    attention = step.operation
    tensors = whole_run(reader.model).tensors
    pattern = tensors.get(attention.pattern)
    if pattern is None or pattern.ndim != 4:
        raise refused(reader, attention, "its pattern did not appear in a run of five tokens")
    n_queries, n_keys = pattern.shape[-2:]
    things = around(reader, attention, max(n_queries, n_keys))
    wanted = _Logits.of(pattern)
    tolerance = _HALF if wanted.half else _CLOSE[pattern.dtype]
    best, closest = None, float("inf")
    for queries, keys, q, k in _pairs(reader, tensors, block, attention):
        for path, plain in _turned(reader, attention, LogitPath(queries, keys), things, q, k, pattern):
            for candidate, made in _scaled(reader, attention, block, path, plain, things, wanted):
                off = wanted.distance(made)
                if off < closest:
                    best, closest = candidate, off
        if closest < _EXACT:
            break
    if best is None or not closest < tolerance:
        raise refused(
            reader, attention, "no norm, rotary embedding, scale and position bias that are known give its pattern"
        )
    short = float(1 - pattern.sum(-1).double().min())
    inner = unwrap(find(reader.model, attention.module))
    names = ("sinks", "sink", "attention_sink_bias")
    sink = next((name for name in names if isinstance(getattr(inner, name, None), Tensor)), None)
    if sink is not None and short > 1e-3:
        return replace(best, sink=sink)
    if short > max(1e-3, 2 * torch.finfo(pattern.dtype).eps):  # weights rounded to half precision need not sum to one
        raise refused(reader, attention, "rows of its pattern do not add up to one, and no sink is known")
    return best


@dataclass(frozen=True)
class _Logits:
    """Logits as a pattern tells them: of the visible keys, less the mean of the row."""

    rows: Tensor
    seen: Tensor
    half: bool  # rounded to half precision

    @classmethod
    def of(cls, pattern: Tensor) -> "_Logits":
        seen = pattern > 1e-30
        return cls(_centred(pattern.double().clamp_min(1e-300).log(), seen), seen, pattern.element_size() <= 2)

    def distance(self, made: Tensor) -> float:
        return distance(_centred(made.double(), self.seen), self.rows)


def _centred(rows: Tensor, seen: Tensor) -> Tensor:
    rows = rows.expand(seen.shape).masked_fill(~seen, 0)
    return (rows - rows.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1)).masked_fill(~seen, 0)


def _pairs(
    reader: Reader, tensors: Mapping[str, Tensor], block: Block, attention: Attention
) -> Iterator[tuple[LogitSide, LogitSide, Tensor, Tensor]]:
    """Queries and keys as far as their projections, with what the short run has there."""
    for queries, q in side_candidates(reader, tensors, block, attention, "q"):
        for keys, k in side_candidates(reader, tensors, block, attention, "k"):
            yield queries, keys, q, k


def _turned(
    reader: Reader, attention: Attention, path: LogitPath, things: Around, q: Tensor, k: Tensor, pattern: Tensor
) -> Iterator[tuple[LogitPath, Tensor]]:
    """<q, k> by every way to turn them, [b h q k]."""
    n_heads = pattern.shape[1]
    kept = path.queries.steps[-1]
    width = q.shape[-1] // n_heads if q.shape[-1] % n_heads == 0 else 0
    if not width or k.shape[-1] % width or n_heads % (k.shape[-1] // width) or not isinstance(kept, Weighed):
        return
    if path.queries.behind != path.keys.behind and path.queries.norm is not None and path.keys.norm is not None:
        return
    last = bool(path.keys.shared)
    for name, tuned in product(("", *(things.turns if things.rotary is not None else ())), (*things.tuned, "")):
        try:
            turns = [turning(things.rotary, name, x.shape[1], last) if name else None for x in (q, k)]
            left = _shaped(reader, attention, path.queries, q, width, turns[0])
            right = _shaped(reader, attention, path.keys, k, width, turns[1])
        except RuntimeError:  # shapes that do not belong together: not this candidate
            continue
        left = left * things.tuned[tuned][: q.shape[1], None, None].to(left) if tuned else left
        right = repeat(right, "b k g e -> b k (g r) e", r=n_heads // right.shape[2])
        plain = torch.einsum("bqhe,bkhe->bhqk", left.double(), right.double())
        yield replace(path, turned=name, last=last, tuned=tuned), plain


def _shaped(
    reader: Reader, attention: Attention, side: LogitSide, x: Tensor, width: int, rotary: Rotary | None
) -> Tensor:
    """Heads of queries or keys, [b pos h e]."""
    form = None if side.norm is None else weights_of(reader, side.norm)
    x = x if form is None or not side.whole else run_norm(form, x)
    if attention.clip is not None:
        x = x.clamp(-attention.clip, attention.clip)
    x = rearrange(x, "b n (h e) -> b n h e", e=width)
    x = x if form is None or side.whole or side.behind else run_norm(form, x)
    if rotary is not None and rotary.cos.shape[-1] > width:
        raise RuntimeError("more angles than columns")
    x = x if rotary is None else rotary(x)
    return x if form is None or side.whole or not side.behind else run_norm(form, x)


def _scaled(
    reader: Reader,
    attention: Attention,
    block: Block,
    path: LogitPath,
    plain: Tensor,
    things: Around,
    wanted: _Logits,
) -> Iterator[tuple[LogitPath, Tensor]]:
    """Logits by scales that the model holds, soft-capped, with what is added by position."""
    inner = unwrap(find(reader.model, attention.module))
    config = getattr(inner, "config", None)
    width = things.d_head
    usual = [width**-0.5, 1.0, width**-0.5 / (block.layer + 1)]
    numbers = float_attributes(inner, config, getattr(find(reader.model, attention.module), "config", None))
    known = [*usual, *numbers, *(n**-0.5 for n in numbers if n > 0), *(1 / n for n in numbers)]
    known += [a * b for a, b in product(numbers, usual[:1])] + [a * b * usual[0] for a, b in product(numbers, numbers)]
    n_queries, n_keys = plain.shape[-2:]
    column = _centred(plain, wanted.seen).flatten()
    caps = [getattr(owner, "attn_logit_softcapping", None) for owner in (inner, config)]
    for cap in dict.fromkeys(cap for cap in caps if cap):
        for scale in dict.fromkeys(known):
            yield replace(path, scale=scale, cap=float(cap)), cap * torch.tanh(plain * scale / cap)
    for name in ("", *(name for name in ADDED if name in things.added)):
        columns = [column]
        if name:
            columns.append(_centred(things.bias(name, n_queries, n_keys).double(), wanted.seen).flatten())
        fitted = torch.linalg.lstsq(torch.stack(columns, 1), wanted.rows.flatten()[:, None]).solution[:, 0].tolist()
        scale = _snapped(fitted[0], known, wanted.half)
        factor = 1.0 if not name else _snapped(fitted[1], [1.0, 2.0, scale, 2 * scale], wanted.half)
        made = plain * scale
        made = made if not name else made + factor * things.bias(name, n_queries, n_keys)
        believed = scale in known and factor in (1.0, 2.0, scale, 2 * scale)
        if not believed and wanted.distance(made) > _EXACT:
            continue
        yield replace(path, scale=scale, added=name, factor=factor), made


def _snapped(value: float, known: list[float], half: bool) -> float:
    """The known number that a fitted one is near; in half precision the first of them, the usual ones."""
    near = [number for number in known if abs(number - value) <= (1e-2 if half else 1e-3) * abs(number)]
    if not near:
        return value
    return near[0] if half else min(near, key=lambda number: abs(number - value))
