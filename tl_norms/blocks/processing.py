"""Which weight processing a model went through, detected from parameters: bridge flags are unreliable."""

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
    norms = [reader.norm(step) for step in steps if isinstance(step, Norm) and not step.refused]
    outputs = [reader.attention_output(step) for step in attentions]
    biases = [reader.value_bias(step) for step in attentions]
    processing = []
    with_gains = [form for form in norms if form.folded or form.gain is not None]
    if with_gains and all(_plain(form) for form in with_gains):
        processing.append("fold_ln")
    if all(_centered(output.weight) for output in outputs):
        processing.append("center_writing_weights")
    if all(b is not None and not bool(b.any()) for b in biases) and any(
        output.bias is not None and bool(output.bias.any()) for output in outputs
    ):
        processing.append("fold_value_biases")
    return tuple(processing)


def warn_once(model: nn.Module, processing: tuple[str, ...]) -> None:
    """Say once per model that its norms are not those of the trained weights."""
    if not processing or model in _warned:
        return
    _warned.add(model)
    bridge = hasattr(model, "enable_compatibility_mode")
    cure = (
        "enable_compatibility_mode(no_processing=True), or no compatibility mode"
        if bridge
        else "HookedTransformer.from_pretrained_no_processing(name)"
    )
    warnings.warn(
        f"the weights of this model look processed ({', '.join(processing)}). Predictions are the same, norms are not: "
        f"value-weighted norms, mixing ratios and maps are those of the processed weights. "
        f"To analyse the trained weights load with {cure}.",
        WeightProcessingWarning,
        stacklevel=_callers_depth(),
    )


def _callers_depth() -> int:
    """How many frames up the caller of this package is, so that the warning points at the caller's line."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("tl_norms", "torch"):
        depth, frame = depth + 1, frame.f_back
    return depth


def _plain(form: NormForm) -> bool:
    """This norm multiplies by exactly one and adds exactly zero."""
    if form.folded or form.gain is None:
        return form.folded
    return bool((form.gain == 1).all()) and (form.beta is None or not bool(form.beta.any()))


def _centered(weight: Tensor) -> bool:
    """Whether the mean of every row is zero up to rounding; a few rows are enough to rule most weights out."""
    return _rows_centered(weight[:8]) and _rows_centered(weight) and bool(weight.any())


def _rows_centered(weight: Tensor) -> bool:
    means, sizes = weight.float().mean(-1).abs(), weight.float().abs().mean(-1)
    coarse = torch.finfo(weight.dtype).eps if weight.element_size() <= 2 else 64 * torch.finfo(torch.float32).eps
    return bool((means <= coarse * sizes).all())  # TransformerLens centres in float32 at best
