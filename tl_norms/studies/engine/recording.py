"""One batch through the model with a NormRecorder: what the studies have in common."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import RecorderError
from ...hooks import Keep, NormRecorder
from ...options import Layers, Scopes
from ...plan import chosen_blocks, reader_of
from ...results import BlockNorms
from .tokens import Batch


def recorded(model: nn.Module, batch: Batch, scopes: Scopes, layers: Layers, keep: Keep, **options) -> NormRecorder:
    """Run the model on a batch; the recorder holds what `keep` asks for, and no activation."""
    recorder = NormRecorder(model, scopes, layers, mask=batch.mask, keep=keep, **options)
    ids, masks = arguments(model, batch)
    with recorder:
        model(ids, **masks)
    return recorder


def per_layer(
    model: nn.Module, batch: Batch, scopes: Scopes, layers: Layers, reduce: Callable[[BlockNorms], Any], **options
) -> dict[int, Any]:
    """layer -> reduce(its norms), in the order of layers asked for."""
    recorder = recorded(model, batch, scopes, layers, reduce, **options)
    return {block.layer: recorder.kept[block.layer] for block in recorder.plan.blocks}


def arguments(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """What the model is called with: ids, and its own names for the mask and the token types."""
    device = next(model.parameters()).device
    parameters = inspect.signature(model.forward).parameters
    options: dict[str, Tensor] = {}
    for name in ("attention_mask", "one_zero_attention_mask"):
        if name in parameters:
            options[name] = batch.mask.long().to(device)
            break
    if batch.types is not None:
        options["token_type_ids"] = batch.types.to(device)
    return batch.ids.to(device), options


def numbers(tensor: Tensor) -> np.ndarray:
    """A tensor as float64 numbers."""
    return tensor.detach().to(torch.float64).cpu().numpy()


def patterns(norms: BlockNorms) -> tuple[Tensor, ...]:
    """The attention patterns of each layer, [batch head query key], which a recorder's function sees in any case."""
    if norms.patterns is None:
        raise RecorderError("these norms have no attention patterns; record them with a function: keep=f.")
    return norms.patterns


def index(batch: Batch) -> np.ndarray:
    """[text 2]: the number of the text and of the window."""
    return np.array([(row.index, row.window) for row in batch.windows], np.int64)


def layer_numbers(model: nn.Module, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    """The numbers of the layers measured, in order."""
    return tuple(block.layer for block in chosen_blocks(reader_of(model), layers)[0])
