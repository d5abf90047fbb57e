"""Weights out of modules, whichever way round a library stores them."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .structure import Affine


def unwrap(module: nn.Module) -> nn.Module:
    """The innermost module that a bridge component wraps."""
    inner = getattr(module, "original_component", None)
    return module if inner is None or inner is module else unwrap(inner)


def affine(module: nn.Module, name: str) -> Affine:
    """Weight [in out] and bias of a linear module."""
    inner = unwrap(module)
    weight, bias = getattr(inner, "weight", None), getattr(inner, "bias", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point():
        if type(inner) is nn.Linear:
            return Affine(weight.T, bias)
        if type(inner).__name__ == "Conv1D":  # transformers' GPT-2 layer stores [in out]
            return Affine(weight, bias)
    raise UnsupportedArchitectureError(
        f"{name} is a {type(inner).__name__}, not a plain linear layer with floating-point weights "
        f"(quantised, sharded or custom): its matrix cannot be read. Load the model without quantisation, "
        f"e.g. boot_transformers(..., dtype=torch.float32)."
    )


def activations(module: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Candidates for the activation function that a module applies, its own attributes first."""
    for part in module.modules():
        for name in ("act", "act_fn", "activation_fn", "activation", "activation_func", "intermediate_act_fn", "gelu_impl"):
            candidate = getattr(part, name, None)
            if callable(candidate):
                yield candidate


def is_elementwise(activation: Callable[[Tensor], Tensor], device: torch.device) -> bool:
    """Whether every output depends on its own input only."""
    x = torch.linspace(-3, 3, 24, dtype=torch.float64, device=device).reshape(2, 12)
    try:
        whole = activation(x)
        alone = torch.cat([activation(column) for column in x.split(1, dim=1)], dim=1)
    except Exception:  # a function of something else altogether
        return False
    return whole.shape == x.shape and torch.allclose(whole, alone, rtol=1e-9, atol=1e-12)
