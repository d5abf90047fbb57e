"""Mixtures of experts: the model's own router is run, its choices and weights are then held fixed.

transformers keeps all experts of a layer in one module, called with the tokens, the chosen experts and their weights.
That call is overheard while the model's own mixture runs on the cached input, so that no router has to be understood:
whatever it does (softmax, sigmoid, groups, biases, scaling), its result is what the experts were called with.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .modules import activations, is_elementwise, unwrap
from .structure import Affine, FeedForwardWeights
from .trace import combination, distance

Fitting = Callable[[nn.Module, str, Tensor, Tensor | None], FeedForwardWeights]
_SHARED = ("shared_expert", "shared_experts", "shared_mlp")


def is_mixture(module: nn.Module) -> bool:
    """Whether a feed-forward component is routed."""
    return isinstance(getattr(unwrap(module), "experts", None), nn.Module)


def read_mixture(
    mlp: nn.Module, name: str, x: Tensor, y: Tensor | None, fitting: Fitting
) -> tuple[FeedForwardWeights, ...]:
    """Every expert that some token was sent to, and the shared ones, with their weights per position."""
    inner = unwrap(mlp)
    call = _overhear(inner, name, x)
    positions = x.shape[:2]
    if len(call.arguments) >= 3:
        weights = _routing(call, x)
        routed = [_expert(call.module, name, e, scale_out=w.reshape(positions)) for e, w in _used(weights)]
    else:  # the inputs themselves are weighted, expert by expert (Llama 4)
        sent = call.arguments[0].reshape(-1, *x.flatten(0, 1).shape)
        scales = (sent * x.flatten(0, 1)).sum(-1) / x.flatten(0, 1).square().sum(-1).clamp_min(1e-30)
        routed = [_expert(call.module, name, e, scale_in=s.reshape(positions)) for e, s in _used(scales)]
    shared = [(child, value) for child, value in call.shared.items()]
    factors = _factors(inner, name, call, [value for _, value in shared], x)
    parts = [_times(part, factors[0]) for part in routed]
    for (child, value), factor in zip(shared, factors[1:], strict=True):
        component = getattr(mlp, child, None) or getattr(inner, child)
        parts.append(_times(fitting(component, f"{name}.{child}", x, value.reshape(x.shape)), factor))
    return tuple(parts)


class _Call:
    """What a mixture's parts were called with, and what they returned."""

    def __init__(self) -> None:
        self.module: nn.Module | None = None
        self.arguments: list[Tensor] = []
        self.routed: Tensor | None = None
        self.shared: dict[str, Tensor] = {}
        self.output: Tensor | None = None


def _overhear(inner: nn.Module, name: str, x: Tensor) -> _Call:
    call = _Call()

    def experts(module, args, kwargs, output):
        call.module, call.routed = unwrap(module), output.clone()
        call.arguments = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]

    def shared(child):
        # cloned: Llama 4 adds the routed experts to it in place
        return lambda module, args, output: call.shared.__setitem__(child, output.clone())

    handles = [inner.experts.register_forward_hook(experts, with_kwargs=True)]
    handles += [
        getattr(inner, child).register_forward_hook(shared(child))
        for child in _SHARED
        if isinstance(getattr(inner, child, None), nn.Module)
    ]
    parameter = next(inner.parameters())
    try:
        with torch.no_grad():
            output = inner(x.to(parameter))
    finally:
        for handle in handles:
            handle.remove()
    if call.module is None or call.routed is None:
        raise UnsupportedArchitectureError(
            f"{name} ({type(inner).__name__}) does not call its experts as one module, so its routing cannot be read. "
            f"Scopes up to the attention block work: tl_norms.block_norms(cache)."
        )
    call.output = (output[0] if isinstance(output, tuple) else output).reshape(x.shape).to(x)
    call.routed = call.routed.to(x)
    call.arguments = [a.to(x) if a.is_floating_point() else a for a in call.arguments]
    call.shared = {child: value.to(x) for child, value in call.shared.items()}
    return call


def _routing(call: _Call, x: Tensor) -> Tensor:
    """Router weights as [expert token]."""
    _, index, weight = call.arguments[:3]
    if index.is_floating_point():
        index, weight = weight, index
    n_experts = _parameter(call.module, "gate_up_proj", "up_proj").shape[0]
    tokens = x.shape[0] * x.shape[1]
    out = x.new_zeros(tokens, n_experts + 1)  # one column more: some routers mark unused slots with it
    if weight.shape == index.shape:
        out.scatter_add_(1, index.reshape(tokens, -1).long(), weight.reshape(tokens, -1))
    else:  # weights of all experts, indices of the chosen ones
        out.scatter_(
            1, index.reshape(tokens, -1).long(), weight.reshape(tokens, -1).gather(1, index.reshape(tokens, -1).long())
        )
    return out[:, :n_experts].T


def _used(weights: Tensor) -> Iterator[tuple[int, Tensor]]:
    for expert in range(len(weights)):
        if bool(weights[expert].any()):
            yield expert, weights[expert]


def _parameter(module: nn.Module | None, *names: str) -> Tensor:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point():
            return value
    raise UnsupportedArchitectureError(
        f"the experts ({type(module).__name__}) hold no floating-point weights {' or '.join(names)} of the kind "
        f"[expert, out, in]; load the model without quantisation."
    )


def _expert(module: nn.Module | None, name: str, number: int, **scales: Tensor) -> FeedForwardWeights:
    """One expert's weights."""
    both, down = _parameter(module, "gate_up_proj"), _parameter(module, "down_proj")
    width = both.shape[2] // 2 if down.shape[1] * 2 == both.shape[2] else both.shape[1] // 2
    transposed = both.shape[2] == 2 * width and down.shape[1] == width
    both, down = (both[number], down[number]) if transposed else (both[number].T, down[number].T)
    biases = [getattr(module, f"{part}_bias", None) for part in ("gate_up_proj", "down_proj")]
    both_bias, down_bias = (None if bias is None else bias[number] for bias in biases)
    out = Affine(down, down_bias)
    limit, alpha = getattr(module, "limit", None), getattr(module, "alpha", None)
    if limit is not None and alpha is not None:  # gpt-oss: (clamp(up) + 1) * gate * sigmoid(alpha * gate), interleaved
        into, up = (Affine(both[:, k::2], None if both_bias is None else both_bias[k::2]) for k in (0, 1))
        return FeedForwardWeights(
            into, up, out, lambda u: u * torch.sigmoid(alpha * u), up_offset=1.0, limit=float(limit), **scales
        )
    into, up = (
        Affine(half, None if both_bias is None else both_bias.chunk(2)[k])
        for k, half in enumerate(both.chunk(2, dim=1))
    )
    assert module is not None
    for activation in activations(module):
        if is_elementwise(activation, both.device):
            return FeedForwardWeights(into, up, out, activation, **scales)
    raise UnsupportedArchitectureError(
        f"the experts of {name} ({type(module).__name__}) have no elementwise activation."
    )


def _factors(inner: nn.Module, name: str, call: _Call, shared: list[Tensor], x: Tensor) -> list[float | Tensor]:
    """What routed and shared outputs are multiplied with in the mixture's output."""
    assert call.output is not None and call.routed is not None
    routed = call.routed
    if routed.numel() != x.numel():  # Llama 4: one copy of the tokens per expert
        routed = routed.reshape(-1, *x.flatten(0, 1).shape).sum(0)
    parts = [routed.reshape(x.shape), *(value.reshape(x.shape) for value in shared)]
    gate = getattr(inner, "shared_expert_gate", None)
    if gate is not None and shared:
        with torch.no_grad():
            factor = torch.sigmoid(gate(x.to(next(inner.parameters())))).to(x).reshape(*x.shape[:2], 1)
        if distance(parts[0] + factor * parts[1], call.output) < 1e-4:
            return [1.0, factor[..., 0]]
    if len(parts) > 1 and distance(sum(parts[1:], parts[0]), call.output) < 1e-4:
        return [1.0] * len(parts)
    fitted = combination(call.output, parts)
    if fitted is None:
        raise UnsupportedArchitectureError(
            f"{name} ({type(inner).__name__}): its output is not a sum of its routed and shared experts that is "
            f"understood. Scopes up to the attention block work: tl_norms.block_norms(cache)."
        )
    return list(fitted)


def _times(part: FeedForwardWeights, factor: float | Tensor) -> FeedForwardWeights:
    """The same expert, its output multiplied."""
    if isinstance(factor, float) and factor == 1.0:
        return part
    if part.scale_out is not None:
        return replace(part, scale_out=part.scale_out * factor)
    if isinstance(factor, Tensor):
        return replace(part, scale_out=factor)
    bias = part.out.bias
    return replace(part, out=Affine(part.out.weight * factor, None if bias is None else bias * factor))
