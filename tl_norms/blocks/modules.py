"""Weights out of modules, whichever way round a library stores them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .structure import Affine

ACTIVATION_NAMES = (
    "act",
    "act_fn",
    "activation_fn",
    "activation",
    "activation_func",
    "intermediate_act_fn",
    "gelu_impl",
)


def unwrap(module: nn.Module) -> nn.Module:
    """The innermost module that a bridge component wraps."""
    inner = getattr(module, "original_component", None)
    return module if inner is None or inner is module else unwrap(inner)


def component(model: nn.Module, path: str) -> nn.Module:
    """The part of a model at a dotted path."""
    module = model
    for name in path.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    return module


def default_eps(model: nn.Module) -> float:
    """The epsilon of a bridge's norms that do not hold their own."""
    return float(getattr(model.cfg, "eps", 1e-5))


def affine(module: nn.Module, name: str) -> Affine:
    """Weight [in out] and bias of a linear module; quantised and offloaded ones are read through what they compute."""
    inner = unwrap(module)
    weight, bias = getattr(inner, "weight", None), getattr(inner, "bias", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point() and not weight.is_meta:
        if isinstance(inner, nn.Linear):
            return Affine(weight.T, bias)
        if type(inner).__name__ == "Conv1D":  # transformers' GPT-2 layer stores [in out]
            return Affine(weight, bias)
    computed = _by_computing(inner)
    if computed is not None:
        return computed
    raise UnsupportedArchitectureError(
        f"{name} is a {type(inner).__name__} whose matrix cannot be read: it is no plain linear layer with "
        f"floating-point weights, and what it computes is not linear (activations quantised too?) or fails. Load the "
        f"model without quantisation, e.g. boot_transformers(..., dtype=torch.float32)."
    )


def _by_computing(inner: nn.Module) -> Affine | None:
    """The matrix of a linear layer from its images of the unit vectors, if it is linear."""
    width = getattr(inner, "in_features", None)
    if not isinstance(width, int):
        return None
    tensors = [*inner.parameters(), *inner.buffers()]
    device = next((t.device for t in tensors if not t.is_meta), torch.device("cpu"))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):  # float64: while a layout is read
        wide = torch.promote_types(dtype, torch.float32)
        try:
            with torch.no_grad():
                inputs = torch.eye(width, device=device, dtype=dtype)
                bias = inner(torch.zeros_like(inputs[:1]))[0].to(wide)
                weight = inner(inputs).to(wide) - bias
                probe = torch.linspace(-1, 1, width, device=device, dtype=dtype).cos()[None]
                off = inner(probe).to(wide) - (probe.to(wide) @ weight + bias)
        except Exception:  # not in this dtype
            continue
        if off.abs().max() <= 32 * torch.finfo(dtype).eps * (weight.abs().sum(0).max() + bias.abs().max()):
            return Affine(weight, bias if bool(bias.any()) else None)
    return None


def is_elementwise(activation: Callable[[Tensor], Tensor], device: torch.device) -> bool:
    """Whether every output depends on its own input only."""
    x = torch.linspace(-3, 3, 24, dtype=torch.float64, device=device).reshape(2, 12)
    try:
        whole = activation(x)
        alone = torch.cat([activation(column) for column in x.split(1, dim=1)], dim=1)
    except Exception:  # a function of something else altogether
        return False
    return whole.shape == x.shape and torch.allclose(whole, alone, rtol=1e-9, atol=1e-12)


def float_attributes(*owners: object) -> list[float]:
    """Numbers that modules and configurations hold by name: multipliers of residuals, gates and branches."""
    numbers: list[float] = []
    for owner in owners:
        values = list(vars(owner).values()) if owner is not None else []
        if isinstance(owner, nn.Module):  # learned scalars
            values += [float(t) for t in (*owner.parameters(False), *owner.buffers(False)) if _is_scalar(t)]
        for value in values:
            numbers += [float(v) for v in (value if isinstance(value, (list, tuple)) else [value]) if _is_multiplier(v)]
    return list(dict.fromkeys(numbers))


def _is_scalar(tensor: Tensor) -> bool:
    return tensor.numel() == 1 and tensor.is_floating_point() and not tensor.is_meta


def _is_multiplier(value: object) -> bool:
    return isinstance(value, float) and value not in (0.0, 1.0) and abs(value) < 1e3
