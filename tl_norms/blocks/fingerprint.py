"""Whether weights have changed: identities, versions and a few numbers of every tensor, at the cost of microseconds.

Versions tell of changes in place; the numbers tell of those that no version counts (`.data` writes, numpy views). What
was decided on the weights is decided again when the fingerprint is another one.
"""

from collections.abc import Hashable

import torch
from torch import Tensor, nn

_SAMPLES = 4  # numbers read of each tensor


@torch.no_grad()
def fingerprint(module: nn.Module) -> Hashable:
    """A value that is another one after a change of the module's parameters or buffers."""
    tensors = _tensors(module)
    facts = tuple((id(t), _version(t), t.dtype, t.device, tuple(t.shape)) for t in tensors)
    samples: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() and not tensor.is_meta and tensor.layout is torch.strided:
            samples.setdefault((tensor.dtype, tensor.device), []).append(_few(tensor.detach()))
    # bytes: equal where the numbers are, NaN included
    numbers = tuple(torch.cat(parts).cpu().view(torch.uint8).numpy().tobytes() for parts in samples.values())
    return facts, numbers


def _tensors(module: nn.Module) -> list[Tensor]:
    """All parameters and buffers, each once: one walk without names, a fraction of what torch's own two take."""
    waiting, seen, found = [module], {id(module)}, {}
    while waiting:
        one = waiting.pop()
        for tensor in (*one._parameters.values(), *one._buffers.values()):
            if tensor is not None:
                found[id(tensor)] = tensor
        for child in one._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)
    return list(found.values())


def _few(tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        tensor = tensor[(slice(0, _SAMPLES),) * tensor.ndim]
    return tensor.reshape(-1)[:: max(1, tensor.numel() // _SAMPLES)][:_SAMPLES]


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # inference tensors count no versions
