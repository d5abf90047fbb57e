"""What is needed of a cache: activations by hook name, with a batch axis, in the dtype computed in, padding zeroed."""

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ..errors import (
    AttentionPatternError,
    CacheShapeError,
    MaskError,
    MissingActivationError,
    NonFiniteError,
    NotACacheError,
)
from ..linear.pieces import short_products
from ..linear.required import judged
from .attention_layout import arrange_values, gate_values
from .masks import checked_mask, fitting
from .structure import Attention, CrossAttention, Reader, Truth

_EXACT = {torch.float64: torch.float64}  # everything else is computed in float32
_RECENT = 3
_ODD_CACHES = (
    "Caches of whole runs are analysed, or of the last positions of a text with the values of all (see "
    "tl_norms.with_past_values): run model.run_with_cache(tokens) without pos_slice, for one batch, and with "
    "has_batch_dim as the tensors are."
)
# squares of numbers outside of these overflow, or vanish
_RANGE = {torch.float32: (1e-17, 1e17), torch.float64: (1e-140, 1e140)}


class Activations:
    """The tensors of a cache, or of a run under way, read for one analysis."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        has_batch: bool,
        reader: Reader,
        mask: Tensor | None = None,
        source_mask: Tensor | None = None,
    ):
        self._tensors, self._reader = tensors, reader
        self._judged: dict[str, tuple[int, int]] = {}  # the last few: a layer reads its stream several times
        self.has_batch = bool(has_batch)
        self.axes: tuple[int, int] | None = None  # texts and positions, from the first pattern read
        self.coarsest = torch.float64  # the least precise dtype met: tolerances follow it
        self.mask = None if mask is None else checked_mask(mask, "mask", self.has_batch)
        self.source_mask = None if source_mask is None else checked_mask(source_mask, "source_mask", self.has_batch)

    def emptied(self, kept: Mapping[str, Tensor] | None = None) -> "Activations":
        """The same without activations but those given: axes and masks."""
        emptied = Activations(kept or {}, self.has_batch, self._reader)
        emptied.mask, emptied.source_mask = self.mask, self.source_mask
        return emptied

    def of_layers(self, tensors: Mapping[str, Tensor], n_layers: int) -> "Activations":
        """Those of several layers, one layer's texts after the other's on the batch axis."""
        joined = Activations(tensors, True, self._reader)
        joined.mask = None if self.mask is None else self.mask.repeat(n_layers, 1)
        return joined

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All activations by hook name, as they were cached."""
        return self._tensors

    def tensor(self, hook: str) -> Tensor:
        """One activation with a batch axis, as it was cached."""
        names = (hook,) if hook in self._tensors else self._reader.equivalents(hook)
        for name in names:
            if name in self._tensors:
                value = self._tensors[name]
                if value.dtype.is_floating_point:
                    dtype = _rounded_as(value)
                    self.coarsest = max(self.coarsest, dtype, key=lambda one: torch.finfo(one).eps)
                value = value.detach() if value.requires_grad else value
                return value if self.has_batch else value[None]
        if hook.endswith("hook_pattern"):
            raise AttentionPatternError(
                f"the cache has no {hook!r}: it was left out of names_filter, or the model runs fused attention, "
                f"which never forms the pattern. boot_transformers(name) loads with eager attention; a model of your "
                f"own needs AutoModel.from_pretrained(name, attn_implementation='eager'). Cache with "
                f"names_filter=tl_norms.required_hooks(model)."
            )
        if hook.endswith(".o.hook_out") and getattr(self._reader.model.cfg, "use_attn_result", False):
            raise MissingActivationError(
                f"the cache has no {hook!r}: with set_use_attn_result(True) TransformerLens adds up the heads itself "
                f"and never runs the output projection that has this hook. Call model.set_use_attn_result(False) and "
                f"run the model again; tl_norms.value_vectors(cache, layer) gives the heads' vectors."
            )
        raise MissingActivationError(
            f"the cache has no {hook!r}. Run the model again with "
            f"model.run_with_cache(tokens, names_filter=tl_norms.required_hooks(model, scopes, layers))."
        )

    def vectors(self, hook: str) -> Tensor:
        """[batch pos ...] with padded positions zero."""
        value = self.tensor(hook)
        if self.axes is not None and tuple(value.shape[:2]) != self.axes:
            raise CacheShapeError(
                f"{hook} has shape {list(value.shape)}, but attention has {self.axes[0]} texts of {self.axes[1]} "
                f"positions. {_ODD_CACHES}"
            )
        if self.mask is not None or value.dtype not in _RANGE or value.is_inference():
            return self._clean(value, hook, self.mask)
        state = value.data_ptr(), value._version
        if self._judged.get(hook) != state:
            self._clean(value, hook, None)
            while len(self._judged) >= _RECENT:
                self._judged.pop(next(iter(self._judged)))
            self._judged[hook] = state
        return value

    def _clean(self, value: Tensor, hook: str, mask: Tensor | None) -> Tensor:
        value = value.to(_EXACT.get(value.dtype, torch.float32))
        if mask is not None:
            mask = fitting(mask, value.shape[0], value.shape[1], value.device)
            value = value.masked_fill(~mask.reshape(*mask.shape, *[1] * (value.ndim - 2)), 0)
        if not value.numel():
            raise CacheShapeError(f"{hook} has shape {list(value.shape)}: there is nothing in it.")
        least, most = _RANGE[value.dtype]

        def judge(top: float) -> None:
            if not top <= most:
                self._refuse_size(value, hook, most)
            if 0 < top < least:
                raise NonFiniteError(
                    f"{hook} holds nothing above {top:.1e}, whose squares vanish in {value.dtype}: norms of it would "
                    f"be zero. Run the model in float64."
                )

        least_value, most_value = torch.aminmax(value)
        judged(torch.maximum(-least_value, most_value), judge)
        return value

    @staticmethod
    def _refuse_size(value: Tensor, hook: str, most: float) -> None:
        where = (~(value.abs() <= most)).nonzero()[0].tolist()
        what = "a number whose square overflows" if bool(torch.isfinite(value).all()) else "NaN or infinity"
        raise NonFiniteError(
            f"{hook} holds {what}, first at batch {where[0]}, position {where[1]}. If that position is "
            f"padding, pass mask=attention_mask; otherwise load the model in float32."
        )

    def source(self, hook: str) -> Tensor:
        """[batch source_pos ...] of the encoder's positions, padded ones zero."""
        return self._clean(self.tensor(hook), hook, self.source_mask)

    def of_source(self, reader: Reader) -> "Activations":
        """The same run, for the encoder's stack."""
        mask = self.source_mask
        mask = mask if mask is None or self.has_batch else mask[0]
        return Activations(self._tensors, self.has_batch, reader, mask)

    def real_keys(self, step: Attention, like: Tensor) -> Tensor:
        """Which of the keys that an attention reads are not padding, [batch key]."""
        mask = self.source_mask if isinstance(step, CrossAttention) else self.mask
        if mask is None:
            return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
        return fitting(mask, like.shape[0], like.shape[1], like.device)

    def padded(self, step: Attention) -> bool:
        """Whether some of the keys that an attention reads may be padding."""
        return (self.source_mask if isinstance(step, CrossAttention) else self.mask) is not None

    def real(self, like: Tensor) -> Tensor:
        """Which positions are not padding, [batch pos], for an activation [batch pos ...]."""
        if self.mask is None:
            return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
        return fitting(self.mask, like.shape[0], like.shape[1], like.device)

    def has(self, truth: Truth) -> bool:
        """Whether all activations that a truth names are here."""
        return all(
            hook in self._tensors or any(name in self._tensors for name in self._reader.equivalents(hook))
            for hook in truth.hooks
        )

    def truth(self, truth: Truth) -> Tensor:
        """The activation that a truth names."""
        value = self.vectors(truth.plus[0])
        for hook in truth.plus[1:]:
            value = value + self.vectors(hook)
        for hook in truth.minus:
            value = value - self.vectors(hook)
        return value

    def attention(self, step: Attention, d_in: int) -> tuple[Tensor, Tensor]:
        """Pattern [b h q k] and values [b k h d_head], grouped heads repeated; d_in is h * d_head."""
        pattern = self.tensor(step.pattern)
        pattern = pattern.to(_EXACT.get(pattern.dtype, torch.float32))
        if pattern.ndim != 4 or not pattern.numel():
            raise CacheShapeError(
                f"{step.pattern} has shape {list(pattern.shape)}; expected [batch, head, query, key]. {_ODD_CACHES}"
            )
        n_batch, n_heads, n_queries, n_keys = pattern.shape
        crossed = isinstance(step, CrossAttention)
        past = 0 if crossed else n_keys - n_queries
        if past < 0:
            raise CacheShapeError(
                f"{step.pattern} has {n_queries} queries and {n_keys} keys; expected as many of both. {_ODD_CACHES}"
            )
        if self.axes is not None and self.axes != (n_batch, n_queries):
            raise CacheShapeError(
                f"{step.pattern} has {n_batch} texts of {n_queries} positions, another layer {self.axes[0]} of "
                f"{self.axes[1]}. {_ODD_CACHES}"
            )
        self.axes = (n_batch, n_queries)
        if past:
            self._check_past(step, pattern, past)
        keys = self.source_mask if isinstance(step, CrossAttention) else self.mask
        if self.mask is not None:
            mask = fitting(self.mask, n_batch, n_queries, pattern.device)
            pattern = pattern.masked_fill(~mask[:, None, :, None], 0)
        if keys is not None:
            mask = fitting(keys, n_batch, n_keys, pattern.device)
            judged(pattern.masked_fill(mask[:, None, None, :], 0).max(), partial(_refuse_hidden, step.pattern))
            pattern = pattern.masked_fill(~mask[:, None, None, :], 0)
        judged(pattern.sum(), partial(_refuse_infinite, step.pattern))
        cached = self.tensor(step.values)
        try:
            values = arrange_values(step, cached, n_heads, d_in // n_heads)
        except RuntimeError:
            values = cached
        if past and tuple(values.shape[:3]) == (n_batch, n_queries, n_heads):
            raise MissingActivationError(
                f"{step.values} holds the values of the {n_queries} new positions, but {step.pattern} attends to "
                f"{n_keys} keys: this run went on from a key-value cache, where the other {past} values are. Add them: "
                f"cache = tl_norms.with_past_values(cache, past_kv_cache)."
            )
        if tuple(values.shape[:3]) != (n_batch, n_keys, n_heads):
            raise CacheShapeError(
                f"{step.values} has shape {list(cached.shape)}, but {step.pattern} has {n_batch} texts, {n_keys} keys "
                f"and {n_heads} heads. {_ODD_CACHES}"
            )
        return pattern, self._clean(values, step.values, keys)

    def _check_past(self, step: Attention, pattern: Tensor, past: int) -> None:
        """Queries that are the last positions of a longer text, whose keys come first."""
        if self.mask is not None:
            raise MaskError(
                f"{step.pattern} has {past} more keys than queries, as after a key-value cache, where a mask would "
                f"have to be one of all positions: leave mask out. Nothing comes from padding."
            )
        own = pattern[..., past:].diagonal(dim1=-2, dim2=-1)
        if bool(pattern[..., past:].triu(1).any()) or not bool(own.any(1).all()):
            raise CacheShapeError(
                f"{step.pattern} has {past} more keys than queries, but its last {pattern.shape[-2]} keys are not the "
                f"queries' own positions: expected a causal model and a key-value cache that grows (no static cache)."
            )

    def gate(self, step: Attention, like: Tensor) -> Tensor | None:
        """What the mixed values are multiplied with, [b q h d_head] or [b q h 1]; None without a gate."""
        return None if step.gate is None else gate_values(step.gate, self.vectors(step.gate.hook), like)


def _refuse_hidden(hook: str, most: float) -> None:
    if most > 1e-4:
        raise MaskError(
            f"the mask hides keys that {hook} attends to (up to {most:.3g}): the model was run without it. Run "
            f"model.run_with_cache(tokens, attention_mask=mask)."
        )


def _refuse_infinite(hook: str, total: float) -> None:
    if not math.isfinite(total):
        raise NonFiniteError(
            f"{hook} holds NaN or infinity. If the batch is padded, pass mask=attention_mask; otherwise load the model "
            f"in float32."
        )


def check_cache(cache) -> None:
    """Refuse what is not an ActivationCache that knows its model."""
    if not (hasattr(cache, "cache_dict") and hasattr(cache, "has_batch_dim")):
        raise NotACacheError(
            f"expected an ActivationCache, got {type(cache).__name__}. Make one with "
            f"_, cache = model.run_with_cache(tokens)  (not return_cache_object=False)."
        )
    if getattr(cache, "model", None) is None:
        raise NotACacheError(
            "this cache does not know its model, whose weights are needed. Give it back: cache.model = model."
        )


def check_whole_run(reader: Reader, activations: Activations) -> None:
    """Refuse a run of a few new positions where every layer's stream is needed at every position."""
    for block in reader.blocks():
        pattern = None if block is None else activations.tensors.get(block.attention()[1].pattern)
        if pattern is not None and pattern.ndim >= 2 and pattern.shape[-2] < pattern.shape[-1]:
            raise CacheShapeError(
                f"this run went on from a key-value cache ({pattern.shape[-2]} new positions, {pattern.shape[-1]} "
                f"keys): what comes through earlier layers of the other positions cannot be traced, since their "
                f"streams are not in it. Run the whole text: model.run_with_cache(tokens). Single blocks work: "
                f"tl_norms.block_norms(tl_norms.with_past_values(cache, past_kv_cache))."
            )


def _rounded_as(value: Tensor) -> torch.dtype:
    """The dtype whose rounding is in an activation: TF32 has the bits of float16."""
    return torch.float16 if value.dtype == torch.float32 and short_products(value.device) else value.dtype
