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
    facts = tuple((id(t), _version(t), t.dtype, t.device, t.shape) for t in tensors)
    samples: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() and not tensor.is_meta and tensor.layout is torch.strided:
            samples.setdefault((tensor.dtype, tensor.device), []).append(_few(tensor))
    # bytes: equal where the numbers are, NaN included
    numbers = tuple(torch.cat(parts).cpu().view(torch.uint8).numpy().tobytes() for parts in samples.values())
    return facts, numbers


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once; nested generators of torch take twenty times as long for a bridge."""
    seen: set[int] = set()
    found: dict[int, Tensor] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        inside = vars(one)
        for name in ("_parameters", "_buffers"):
            for tensor in inside[name].values():
                if tensor is not None:
                    found[id(tensor)] = tensor
        waiting.extend(inside["_modules"].values())
    return list(found.values())


def _few(tensor: Tensor) -> Tensor:
    if not tensor.is_contiguous():
        tensor = tensor[(slice(0, _SAMPLES),) * tensor.ndim].reshape(-1)
    count = min(_SAMPLES, tensor.numel())
    return tensor.as_strided((count,), (max(1, tensor.numel() // _SAMPLES),))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # inference tensors count no versions
