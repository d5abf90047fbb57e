"""Mixtures of experts: the model's own router is run, its choices and weights are then held fixed.

transformers keeps all experts of a layer in one module, called with the tokens, the chosen experts and their weights.
Routing is read from the arguments of that call, made by the model's own mixture on the cached input: whatever a router
does (softmax, sigmoid, groups, biases, scaling), its result is what the experts are called with.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .forms import placed, places
from .modules import float_attributes, unwrap
from .structure import Affine, FeedForwardKind, FeedForwardWeights, MixtureKind
from .trace import combination, distance, sum_error

Decide = Callable[[nn.Module, str, Tensor, Tensor], FeedForwardKind]
Weights = Callable[[nn.Module, str, FeedForwardKind], FeedForwardWeights]
_SHARED = ("shared_expert", "shared_experts", "shared_mlp")


def is_mixture(module: nn.Module) -> bool:
    """Whether a feed-forward component is routed."""
    return isinstance(getattr(unwrap(module), "experts", None), nn.Module)


def mixture_kind(mlp: nn.Module, name: str, x: Tensor, decide: Decide) -> MixtureKind:
    """How a mixture adds up its experts; `decide` finds the form of a shared one, (module, name, x, y)."""
    inner = unwrap(mlp)
    call = _call(inner, name, x)
    shared = tuple(
        (child, decide(_component(mlp, child), f"{name}.{child}", x, value)) for child, value in call.shared.items()
    )
    activation = "" if _is_clamped(call.module) else next(places(call.module, x.device), None)
    if activation is None:
        raise UnsupportedArchitectureError(
            f"the experts of {name} ({type(call.module).__name__}) have no elementwise activation."
        )
    return MixtureKind(activation, _factors(inner, name, call, x), shared)


def read_mixture(
    mlp: nn.Module, name: str, kind: MixtureKind, x: Tensor, weights: Weights
) -> tuple[FeedForwardWeights, ...]:
    """Every expert that some token was sent to, and the shared ones, with their weights per position."""
    inner = unwrap(mlp)
    call = _call(inner, name, x, next(inner.parameters()))
    positions = x.shape[:2]
    if call.index is not None and call.weight is not None:
        routing = _routing(call.module, call.index, call.weight, x)
        parts = [_expert(call.module, kind, e, scale_out=w.reshape(positions)) for e, w in _used(routing)]
    else:  # the inputs themselves are weighted, expert by expert (Llama 4)
        sent = call.tokens.reshape(-1, *x.flatten(0, 1).shape)
        scales = (sent * x.flatten(0, 1)).sum(-1) / x.flatten(0, 1).square().sum(-1).clamp_min(1e-30)
        parts = [_expert(call.module, kind, e, scale_in=s.reshape(positions)) for e, s in _used(scales)]
    factors: list[float | Tensor] = (
        [1.0, _own_gate(inner, x, next(inner.parameters()))] if kind.factors is None else list(kind.factors)
    )
    parts = [_times(part, factors[0]) for part in parts]
    for (child, shared), factor in zip(kind.shared, factors[1:], strict=True):
        parts.append(_times(weights(_component(mlp, child), f"{name}.{child}", shared), factor))
    return tuple(parts)


def _component(mlp: nn.Module, child: str) -> nn.Module:
    return getattr(mlp, child, None) or getattr(unwrap(mlp), child)


@dataclass(frozen=True)
class _Call:
    """What a mixture's experts were called with, and what its parts returned, in the dtype of its input.

    index and weight: the chosen experts and their weights, None where the tokens themselves are weighted.
    """

    module: nn.Module
    tokens: Tensor
    index: Tensor | None
    weight: Tensor | None
    routed: Tensor
    output: Tensor
    shared: dict[str, Tensor] = field(default_factory=dict)


def _call(inner: nn.Module, name: str, x: Tensor, like: Tensor | None = None) -> _Call:
    """Run a mixture on x, in the dtype of `like`, and record how it calls its experts."""
    calls: list[tuple[nn.Module, list[Tensor], Tensor]] = []
    shared: dict[str, Tensor] = {}

    def experts(module, args, kwargs, output):
        calls.append((unwrap(module), [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)], output.clone()))

    def keep(child):
        # cloned: Llama 4 adds the routed experts to it in place
        return lambda module, args, output: shared.__setitem__(child, output.clone())

    handles = [inner.experts.register_forward_hook(experts, with_kwargs=True)]
    handles += [
        getattr(inner, child).register_forward_hook(keep(child))
        for child in _SHARED
        if isinstance(getattr(inner, child, None), nn.Module)
    ]
    try:
        with torch.no_grad():
            output = inner(x if like is None else x.to(like))
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise UnsupportedArchitectureError(
            f"{name} ({type(inner).__name__}) does not call its experts as one module, so its routing cannot be read. "
            f"Scopes up to the attention block work: tl_norms.block_norms(cache)."
        )
    module, arguments, routed = calls[-1]
    arguments = [a.to(x) if a.is_floating_point() else a for a in arguments]
    index, weight = arguments[1:3] if len(arguments) >= 3 else (None, None)
    if index is not None and index.is_floating_point():
        index, weight = weight, index
    output = (output[0] if isinstance(output, tuple) else output).reshape(x.shape).to(x)
    shared = {child: value.reshape(x.shape).to(x) for child, value in shared.items()}
    return _Call(module, arguments[0], index, weight, routed.to(x), output, shared)


def _routing(module: nn.Module, index: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """Router weights as [expert token]."""
    n_experts = _parameter(module, "gate_up_proj", "up_proj").shape[0]
    tokens = x.shape[0] * x.shape[1]
    weight, index = weight.reshape(tokens, -1), index.reshape(tokens, -1).long()
    out = x.new_zeros(tokens, n_experts + 1)  # one column more: some routers mark unused slots with it
    if weight.shape == index.shape:
        out.scatter_add_(1, index, weight)
    else:  # weights of all experts, indices of the chosen ones
        out.scatter_(1, index, weight.gather(1, index))
    return out[:, :n_experts].T


def _used(weights: Tensor) -> Iterator[tuple[int, Tensor]]:
    for expert in range(len(weights)):
        if bool(weights[expert].any()):
            yield expert, weights[expert]


def _parameter(module: nn.Module, *names: str) -> Tensor:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point():
            return value
    raise UnsupportedArchitectureError(
        f"the experts ({type(module).__name__}) hold no floating-point weights {' or '.join(names)} of the kind "
        f"[expert, out, in]; load the model without quantisation."
    )


def _is_clamped(module: nn.Module) -> bool:
    """gpt-oss: (clamp(up) + 1) * gate * sigmoid(alpha * gate), gate and up interleaved."""
    return getattr(module, "limit", None) is not None and getattr(module, "alpha", None) is not None


def _expert(module: nn.Module, kind: MixtureKind, number: int, **scales: Tensor) -> FeedForwardWeights:
    """One expert's weights."""
    both, down = _parameter(module, "gate_up_proj"), _parameter(module, "down_proj")
    width = both.shape[2] // 2 if down.shape[1] * 2 == both.shape[2] else both.shape[1] // 2
    transposed = both.shape[2] == 2 * width and down.shape[1] == width
    both, down = (both[number], down[number]) if transposed else (both[number].T, down[number].T)
    biases = [getattr(module, f"{part}_bias", None) for part in ("gate_up_proj", "down_proj")]
    both_bias, down_bias = (None if bias is None else bias[number] for bias in biases)
    out = Affine(down, down_bias)
    if _is_clamped(module):
        alpha, limit = module.alpha, float(module.limit)
        into, up = (Affine(both[:, k::2], None if both_bias is None else both_bias[k::2]) for k in (0, 1))
        return FeedForwardWeights(
            into, up, out, lambda u: u * torch.sigmoid(alpha * u), up_offset=1.0, limit=limit, **scales
        )
    into, up = (
        Affine(half, None if both_bias is None else both_bias.chunk(2)[k])
        for k, half in enumerate(both.chunk(2, dim=1))
    )
    return FeedForwardWeights(into, up, out, placed(module, kind.activation), **scales)


def _own_gate(inner: nn.Module, x: Tensor, like: Tensor | None = None) -> Tensor:
    """The sigmoid of a shared expert's own gate, [batch pos]."""
    with torch.no_grad():
        gate = inner.shared_expert_gate(x if like is None else x.to(like))
    return torch.sigmoid(gate).to(x).reshape(x.shape[:2])


def _factors(inner: nn.Module, name: str, call: _Call, x: Tensor) -> tuple[float, ...] | None:
    """What routed and shared outputs are multiplied with in the mixture's output; None for the shared expert's gate."""
    routed = call.routed
    if routed.numel() != x.numel():  # Llama 4: one copy of the tokens per expert
        routed = routed.reshape(-1, *x.flatten(0, 1).shape).sum(0)
    parts = [routed.reshape(x.shape), *call.shared.values()]
    if getattr(inner, "shared_expert_gate", None) is not None and call.shared:
        gated = parts[0] + _own_gate(inner, x)[..., None] * parts[1]
        if distance(gated, call.output, than=parts[1]) < sum_error(x.dtype):
            return None
    factors = combination(call.output, parts, float_attributes(inner, getattr(inner, "config", None)))
    if factors is None:
        raise UnsupportedArchitectureError(
            f"{name} ({type(inner).__name__}): its output is not a sum of its routed and shared experts that is "
            f"understood. Scopes up to the attention block work: tl_norms.block_norms(cache)."
        )
    return tuple(factors)


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
