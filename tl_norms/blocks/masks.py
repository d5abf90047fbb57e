"""Attention masks as users have them: checked, as booleans with a batch axis."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MaskError


def checked_mask(mask: Tensor, name: str, has_batch: bool) -> Tensor:
    """True where a position is real, [batch pos].

    Raises:
        MaskError: other axes than the cache has, numbers other than 0 and 1, or a text without a real position.
    """
    try:
        mask = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError):
        raise MaskError(f"{name} is a {type(mask).__name__}; expected a tensor of zeros and ones.") from None
    if mask.ndim != (2 if has_batch else 1):
        shape = "[batch, pos]" if has_batch else "[pos]"
        raise MaskError(
            f"the mask has shape {list(mask.shape)}; this cache takes {shape}: pass tokenizer(...).attention_mask."
        )
    if mask.is_complex() or not bool(((mask == 0) | (mask == 1)).all()):
        if mask.is_floating_point() and bool((mask <= 0).all()):
            raise MaskError(
                f"{name} looks additive (zeros and large negative numbers); expected 1 at real tokens and 0 at "
                f"padding: pass tokenizer(...).attention_mask."
            )
        raise MaskError(f"{name} holds other numbers than 0 and 1; pass tokenizer(...).attention_mask.")
    mask = (mask if has_batch else mask[None]).bool()
    if not bool(mask.any(-1).all()):
        empty = int((~mask.any(-1)).nonzero()[0])
        raise MaskError(f"{name} has no real token in text {empty}; leave that text out of the batch.")
    return mask


def fitting(mask: Tensor, batch: int, positions: int, device: torch.device) -> Tensor:
    """The mask on the device of an activation [batch pos ...], if it is of its shape."""
    if tuple(mask.shape) != (batch, positions):
        raise MaskError(
            f"the mask has shape {list(mask.shape)}, the cache {[batch, positions]}; "
            f"pass the attention_mask the model was run with (of a decoder: mask= for its own positions, "
            f"source_mask= for the encoder's)."
        )
    return mask.to(device)


def pass_masks(
    model: nn.Module, inputs: dict[str, Any], mask: Tensor | None, source_mask: Tensor | None, decoder: bool
) -> None:
    """Give the model the masks of the analysis, unless its inputs have their own.

    Args:
        decoder: whether `mask` is that of a decoder and `source_mask` that of its encoder
    """
    if decoder and mask is not None and hasattr(model, "original_model"):
        inputs.setdefault("decoder_attention_mask", torch.as_tensor(mask))
    attention_mask = source_mask if decoder else mask
    if attention_mask is None:
        return
    parameters = inspect.signature(model.forward).parameters
    name = next((n for n in ("attention_mask", "one_zero_attention_mask") if n in parameters), None)
    if name is not None:
        inputs.setdefault(name, torch.as_tensor(attention_mask))
