"""What is needed of a cache: tensors by hook name, with a batch axis, in the arithmetic's dtype, padding zeroed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import AttentionPatternError, MaskError, MissingActivationError, NonFiniteError, NotACacheError
from .attention_layout import arrange_values, gate_values
from .structure import Attention, CrossAttention, Reader, Truth

_EXACT = {torch.float64: torch.float64}  # everything else is computed in float32


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
        self.has_batch = bool(has_batch)
        self.coarsest = torch.float64  # the least exact dtype met: tolerances follow it
        self.mask = None if mask is None else self._checked_mask(mask)
        self.source_mask = None if source_mask is None else self._checked_mask(source_mask)

    def emptied(self) -> "Activations":
        """The same without its tensors: axes and mask only."""
        emptied = Activations({}, self.has_batch, self._reader)
        emptied.mask, emptied.source_mask = self.mask, self.source_mask
        return emptied

    def _checked_mask(self, mask: Tensor) -> Tensor:
        mask = torch.as_tensor(mask)
        wanted = 2 if self.has_batch else 1
        if mask.ndim != wanted:
            shape = "[batch, pos]" if self.has_batch else "[pos]"
            raise MaskError(
                f"the mask has shape {list(mask.shape)}; this cache takes {shape}: pass tokenizer(...).attention_mask."
            )
        return (mask if self.has_batch else mask[None]).bool()

    def tensor(self, hook: str) -> Tensor:
        """One activation with a batch axis, as it was cached."""
        names = (hook,) if hook in self._tensors else self._reader.equivalents(hook)
        for name in names:
            if name in self._tensors:
                value = self._tensors[name]
                if value.dtype.is_floating_point and torch.finfo(value.dtype).eps > torch.finfo(self.coarsest).eps:
                    self.coarsest = value.dtype
                return value if self.has_batch else value[None]
        if hook.endswith("hook_pattern"):
            raise AttentionPatternError(
                f"the cache has no {hook!r}: it was left out of names_filter, or the model runs fused attention, "
                f"which never forms the pattern. boot_transformers(name) loads with eager attention; a model of your "
                f"own needs AutoModel.from_pretrained(name, attn_implementation='eager'). Cache with "
                f"names_filter=tl_norms.required_hooks(model)."
            )
        raise MissingActivationError(
            f"the cache has no {hook!r}. Run the model again with "
            f"model.run_with_cache(tokens, names_filter=tl_norms.required_hooks(model, scopes, layers))."
        )

    def vectors(self, hook: str) -> Tensor:
        """[batch pos ...] with padded positions zero."""
        return self._clean(self.tensor(hook), hook, self.mask)

    def _clean(self, value: Tensor, hook: str, mask: Tensor | None) -> Tensor:
        value = value.to(_EXACT.get(value.dtype, torch.float32))
        if mask is not None:
            mask = _fitting(mask, value.shape[0], value.shape[1], value.device)
            value = value.masked_fill(~mask.reshape(*mask.shape, *[1] * (value.ndim - 2)), 0)
        # a sum is finite unless a part is not (or it overflows): cheaper than looking at every number
        if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
            where = (~torch.isfinite(value)).nonzero()[0].tolist()
            raise NonFiniteError(
                f"{hook} holds NaN or infinity, first at batch {where[0]}, position {where[1]}. If that position is "
                f"padding, pass mask=attention_mask; otherwise load the model in float32."
            )
        return value

    def real(self, like: Tensor) -> Tensor:
        """Which positions are not padding, [batch pos], for a tensor [batch pos ...]."""
        if self.mask is None:
            return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
        return _fitting(self.mask, like.shape[0], like.shape[1], like.device)

    def has(self, truth: Truth) -> bool:
        """Whether all activations that a truth names are here."""
        return all(any(n in self._tensors for n in (hook, *self._reader.equivalents(hook))) for hook in truth.hooks)

    def truth(self, truth: Truth) -> Tensor:
        """The activation that a truth names."""
        value = self.vectors(truth.plus[0])
        for hook in truth.plus[1:]:
            value = value + self.vectors(hook)
        for hook in truth.minus:
            value = value - self.vectors(hook)
        return value

    def attention(self, step: Attention, d_in: int) -> tuple[Tensor, Tensor]:
        """Pattern [b h q k] and values [b k h d_head], grouped heads repeated; d_in is the width of all heads."""
        pattern = self.tensor(step.pattern)
        pattern = pattern.to(_EXACT.get(pattern.dtype, torch.float32))
        n_batch, n_heads, n_queries, n_keys = pattern.shape
        keys = self.source_mask if isinstance(step, CrossAttention) else self.mask
        if self.mask is not None:
            mask = _fitting(self.mask, n_batch, n_queries, pattern.device)
            pattern = pattern.masked_fill(~mask[:, None, :, None], 0)
        if keys is not None:
            mask = _fitting(keys, n_batch, n_keys, pattern.device)
            hidden = pattern.masked_fill(mask[:, None, None, :], 0)
            if float(hidden.max()) > 1e-4:
                raise MaskError(
                    f"the mask hides keys that {step.pattern} attends to (up to {float(hidden.max()):.3g}): the model "
                    f"was run without it. Run model.run_with_cache(tokens, attention_mask=mask)."
                )
            pattern = pattern.masked_fill(~mask[:, None, None, :], 0)
        if not bool(torch.isfinite(pattern.sum(-1)).all()):
            raise NonFiniteError(
                f"{step.pattern} holds NaN or infinity. If the batch is padded, pass mask=attention_mask; "
                f"otherwise load the model in float32."
            )
        values = arrange_values(step, self.tensor(step.values), n_heads, d_in // n_heads)
        return pattern, self._clean(values, step.values, keys)

    def gate(self, step: Attention, like: Tensor) -> Tensor | None:
        """The factor of the mixed values, [b q h d_head] or [b q h 1], if there is one."""
        return None if step.gate is None else gate_values(step.gate, self.vectors(step.gate.hook), like)


def _fitting(mask: Tensor, batch: int, positions: int, device: torch.device) -> Tensor:
    if tuple(mask.shape) != (batch, positions):
        raise MaskError(
            f"the mask has shape {list(mask.shape)}, the cache {[batch, positions]}; "
            f"pass the attention_mask the model was run with (of a decoder: mask= for its own positions, "
            f"source_mask= for the encoder's)."
        )
    return mask.to(device)


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
