"""Which weight processing a model went through, told from its tensors: flags of the bridge do not say."""

import sys
import warnings
import weakref

import torch
from torch import Tensor, nn

from ..errors import WeightProcessingWarning
from .structure import Attention, Block, Norm, NormForm, Reader

_warned: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def detect(reader: Reader, blocks: list[Block]) -> tuple[str, ...]:
    """Names of the processing steps seen in all of these blocks, as TransformerLens calls them.

    fold_ln                 every norm's gain is one and its bias zero, or the norm has lost both
    center_writing_weights  W_O writes nothing along the mean of d_model
    fold_value_biases       b_V is zero although b_O is not
    """
    if not blocks:
        return ()
    steps = [step.operation for block in blocks for step in block.steps]
    attentions = [step for step in steps if isinstance(step, Attention)]
    norms = [reader.norm_forms(step) for step in steps if isinstance(step, Norm)]
    outputs = [reader.attention_output(step) for step in attentions]
    biases = [reader.value_bias(step) for step in attentions]
    found = []
    telling = [forms for forms in norms if any(form.folded or form.gain is not None for form in forms)]
    if telling and all(_plain(forms) for forms in telling):
        found.append("fold_ln")
    if all(_centered(output.weight) for output in outputs):
        found.append("center_writing_weights")
    if all(b is not None and not bool(b.any()) for b in biases) and any(
        output.bias is not None and bool(output.bias.any()) for output in outputs
    ):
        found.append("fold_value_biases")
    return tuple(found)


def warn_once(model: nn.Module, found: tuple[str, ...]) -> None:
    """Say once per model that its norms are not those of the trained weights."""
    if not found or model in _warned:
        return
    _warned.add(model)
    bridge = hasattr(model, "enable_compatibility_mode")
    cure = (
        "enable_compatibility_mode(no_processing=True), or no compatibility mode"
        if bridge
        else "HookedTransformer.from_pretrained_no_processing(name)"
    )
    warnings.warn(
        f"the weights of this model look processed ({', '.join(found)}). Predictions are the same, norms are not: "
        f"value-weighted norms, mixing ratios and maps are those of the processed weights. "
        f"To analyse the trained weights load with {cure}.",
        WeightProcessingWarning,
        stacklevel=_callers_depth(),
    )


def _callers_depth() -> int:
    """How far up the line is that called this package, so that the warning points there."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("tl_norms", "torch"):
        depth, frame = depth + 1, frame.f_back
    return depth


def _plain(forms: tuple[NormForm, ...]) -> bool:
    """Some form of this norm multiplies by exactly one and adds exactly zero."""
    return any(
        form.folded
        or (form.gain is not None and bool((form.gain == 1).all()) and (form.beta is None or not bool(form.beta.any())))
        for form in forms
    )


def _centered(weight: Tensor) -> bool:
    """Whether the mean of every row is as small as rounding leaves it; a few rows tell most weights that are not."""
    return _rows_centered(weight[:8]) and _rows_centered(weight) and bool(weight.any())


def _rows_centered(weight: Tensor) -> bool:
    means, sizes = weight.float().mean(-1).abs(), weight.float().abs().mean(-1)
    coarse = torch.finfo(weight.dtype).eps if weight.element_size() <= 2 else 64 * torch.finfo(torch.float32).eps
    return bool((means <= coarse * sizes).all())  # TransformerLens centres in float32 at best
