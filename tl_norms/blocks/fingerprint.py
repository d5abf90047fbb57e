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
    facts, samples = [], {}
    for tensor in _tensors(module):
        dtype, device = tensor.dtype, tensor.device
        facts.append((id(tensor), _version(tensor), dtype, device, tensor.shape))
        if tensor.layout is torch.strided and not tensor.is_meta and (size := tensor.numel()):
            key = dtype, device.type, device.index
            if key not in samples:
                samples[key] = []
            samples[key].append(_few(tensor, size))
    # bytes: equal where the numbers are, NaN included
    numbers = tuple(torch.cat(parts).cpu().view(torch.uint8).numpy().tobytes() for parts in samples.values())
    return tuple(facts), numbers


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once; nested generators of torch take twenty times as long for a bridge."""
    seen: set[nn.Module] = set()
    found: dict[int, Tensor] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        one = waiting.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        inside = one.__dict__
        if held := inside["_parameters"]:
            found.update((id(tensor), tensor) for tensor in held.values() if tensor is not None)
        if held := inside["_buffers"]:
            found.update((id(tensor), tensor) for tensor in held.values() if tensor is not None)
        if modules := inside["_modules"]:
            waiting.extend(modules.values())
    return list(found.values())


def _few(tensor: Tensor, size: int) -> Tensor:
    if not tensor.is_contiguous():
        tensor = tensor[(slice(0, _SAMPLES),) * tensor.ndim].reshape(-1)
        size = tensor.numel()
    if size < _SAMPLES:
        return tensor.as_strided((size,), (1,))
    return tensor.as_strided((_SAMPLES,), (size // _SAMPLES,))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # inference tensors count no versions
