"""Which form a norm or a feed-forward has: decided once per model, on the short run, by what the module computes.

`norm_kind` and `feed_forward_kind` decide; `norm_form` and `feed_forward_weights` read the weights of a decided form,
whenever they are needed. A form that leaves a choice open is refused, not guessed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UnsupportedArchitectureError
from .modules import ACTIVATION_NAMES, affine, float_attributes, is_elementwise, unwrap
from .structure import Affine, FeedForwardKind, FeedForwardWeights, NormForm, NormKind
from .trace import distance, sum_error

Activation = Callable[[Tensor], Tensor]
_EPSILONS = ("eps", "variance_epsilon", "epsilon", "norm_eps")
# activations that transformers calls as functions, not as modules that could be found
_FUNCTIONS: dict[str, Activation] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "relu": functional.relu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu_squared": lambda x: functional.relu(x).square(),
}


# ---- norms


def norm_kind(
    norm: nn.Module, default_eps: float, width: int, dtype: torch.dtype, device: torch.device, *, any_of: bool = False
) -> NormKind:
    """The form of a norm, by what it makes of vectors of several sizes whose mean is not zero.

    `any_of`: of several forms that give the same (gains of exactly one or zero), the first will do.
    """
    k = torch.arange(6 * width, dtype=torch.float32, device=device).reshape(1, 6, width)
    sizes = torch.tensor([1.0, 30.0, 0.1, 1e-2, 3e-3, 1e-3], device=device)[:, None]  # the small ones show epsilon
    x = ((0.5 + torch.sin(0.3711 * k * k)) * sizes).to(dtype)
    return decided_norm(norm, x, norm(x), default_eps, any_of=any_of)


def decided_norm(norm: nn.Module, x: Tensor, y: Tensor, default_eps: float, *, any_of: bool = False) -> NormKind:
    """The form of a norm that makes y of x."""
    inner = _one_or_each(norm)
    kinds = [
        NormKind(center, eps, gain)
        for gain in (("weight", "1 + weight", "") if weights_in_norm(norm)[0] is not None else ("",))
        for center in (True, False)
        for eps in (*(name for name in _EPSILONS if isinstance(getattr(inner, name, None), (int, float))), "")
    ]
    offs = [distance(normed(x, norm_form(norm, kind, default_eps)), y) for kind in kinds]
    best = min(offs)
    alike = max(2 * best, sum_error(x.dtype) / 10)  # a gain of 1.02 is not one, in half precision too
    close = [kind for kind, off in zip(kinds, offs, strict=True) if off <= alike]
    several = not any_of and len({(kind.center, kind.gain) for kind in close}) > 1
    if best > sum_error(x.dtype) or several:
        found = "several forms explain" if len(close) > 1 else "no form of LayerNorm or RMSNorm explains"
        raise UnsupportedArchitectureError(
            f"a {type(inner).__name__}: {found} what it computes (closest: off by {best:.1e})."
        )
    return close[0] if any_of else kinds[offs.index(best)]


def norm_form(norm: nn.Module, kind: NormKind, default_eps: float) -> NormForm:
    """A norm's weights as they are now."""
    inner = _one_or_each(norm)
    weight, beta = weights_in_norm(norm)
    if weight is not None and weight.is_meta:
        raise UnsupportedArchitectureError(
            f"the weights of a {type(inner).__name__} are offloaded; load the model without disk or CPU offload."
        )
    eps = float(getattr(inner, kind.eps)) if kind.eps else default_eps
    if not kind.gain:  # a weight that is not applied was folded into the next ones
        return NormForm(kind.center, eps, None, None, folded=weight is not None)
    if kind.gain == "1 + weight" and weight is not None:
        weight = 1 + weight.to(torch.promote_types(weight.dtype, torch.float32))
    return NormForm(kind.center, eps, weight, beta)


def _one_or_each(norm: nn.Module) -> nn.Module:
    """A norm, or the first of a list of one for every head (StableLM)."""
    inner = unwrap(norm)
    each = getattr(inner, "norms", None)
    return each[0] if isinstance(each, nn.ModuleList) and len(each) else inner


def weights_in_norm(norm: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Gain and bias, [d], or [head d] where every head has its own."""
    inner = unwrap(norm)
    each = getattr(inner, "norms", None)
    if not isinstance(each, nn.ModuleList) or not len(each):
        return getattr(inner, "weight", None), getattr(inner, "bias", None)
    gains, betas = ([getattr(one, name, None) for one in each] for name in ("weight", "bias"))
    gain, beta = (None if any(part is None for part in parts) else torch.stack(parts) for parts in (gains, betas))
    return gain, beta


def normed(x: Tensor, form: NormForm) -> Tensor:
    """The norm itself, plainly, to see whether it is the model's."""
    centred = x - x.mean(-1, keepdim=True) if form.center else x
    y = centred / (centred.square().mean(-1, keepdim=True) + form.eps).sqrt()
    y = y if form.gain is None else y * form.gain.to(y)
    return y if form.beta is None else y + form.beta.to(y)


# ---- feed-forwards


def feed_forward_kind(
    mlp: nn.Module, block: nn.Module, name: str, x: Tensor, y: Tensor, default_eps: float
) -> FeedForwardKind:
    """The form of a plain or gated feed-forward that makes y of x."""
    chosen, least = None, float("inf")
    for kind in _kinds(mlp, block, name, x, default_eps):
        off = distance(computed(feed_forward_weights(mlp, block, name, kind, default_eps), x), y)
        if off < 0.5 * least:  # the earlier of two that are as good: the module's own function
            chosen, least = kind, off
    if chosen is None or least > sum_error(x.dtype):
        raise UnsupportedArchitectureError(
            f"{name} ({type(unwrap(mlp)).__name__}): no elementwise activation function of the model explains its "
            f"output (closest: off by {least:.1e}), so integrated gradients have no closed form here. Ask for scopes "
            f"without 'ff': tl_norms.block_norms(cache)."
        )
    return chosen


def _kinds(mlp: nn.Module, block: nn.Module, name: str, x: Tensor, default_eps: float) -> Iterator[FeedForwardKind]:
    """Forms that a feed-forward with these parts may take, likeliest first."""
    linear, gate, out = _projections(mlp, name)
    orders = [False, True] if gate is not None or linear.weight.shape[1] == 2 * out.weight.shape[0] else [False]
    inners: list[tuple[str, NormKind] | None] = [None]
    if unwrap(mlp) is not unwrap(block):  # some feed-forwards are the block itself: its norms are not theirs
        norms = [(n, m) for n, m in unwrap(mlp).named_children() if "norm" in type(m).__name__.lower()]
        width = out.weight.shape[0]
        inners = [(n, norm_kind(m, default_eps, width, x.dtype, x.device)) for n, m in norms] or inners
    activations = list(_activations(mlp, block, x.device))
    for factor in (1.0, *float_attributes(unwrap(mlp))):  # Falcon-H1 multiplies the input of the activation
        for activation in activations:
            for swapped in orders:
                for inner in inners:
                    yield FeedForwardKind(activation, swapped, factor, inner)


def feed_forward_weights(
    mlp: nn.Module, block: nn.Module, name: str, kind: FeedForwardKind, default_eps: float
) -> FeedForwardWeights:
    """A feed-forward's weights as they are now."""
    linear, gate, out = _projections(mlp, name)
    into, up = linear, None
    if gate is not None:
        into, up = gate, linear
    elif linear.weight.shape[1] == 2 * out.weight.shape[0]:  # gate and up in one projection
        into, up = _halves(linear)
    if kind.swapped and up is not None:
        into, up = up, into
    if kind.factor != 1.0:
        into = Affine(into.weight * kind.factor, None if into.bias is None else into.bias * kind.factor)
    inner = None
    if kind.inner is not None:
        inner = norm_form(getattr(unwrap(mlp), kind.inner[0]), kind.inner[1], default_eps)
    return FeedForwardWeights(into, up, out, activation(kind.activation, mlp, block), inner=inner)


def _projections(mlp: nn.Module, name: str) -> tuple[Affine, Affine | None, Affine]:
    """Input, gate and output projection; from the wrapped module where TransformerLens does not name them."""
    linear, gate, out = (getattr(mlp, part, None) for part in ("in", "gate", "out"))
    if linear is None or out is None:
        children = [module for _, module in unwrap(mlp).named_children() if isinstance(unwrap(module), nn.Linear)]
        shapes = [(unwrap(module).in_features, unwrap(module).out_features) for module in children]
        if len(children) != 3 or not shapes[0] == shapes[1] == shapes[2][::-1]:
            raise UnsupportedArchitectureError(
                f"{name} ({type(unwrap(mlp)).__name__}) has no plain input and output projections. Scopes up to the "
                f"attention block work: tl_norms.block_norms(cache)."
            )
        gate, linear, out = children
    gated = None if gate is None else affine(gate, name + ".gate")
    return affine(linear, name + ".in"), gated, affine(out, name + ".out")


def _halves(both: Affine) -> tuple[Affine, Affine]:
    left, right = both.weight.chunk(2, dim=1)
    biases = (None, None) if both.bias is None else both.bias.chunk(2)
    return Affine(left, biases[0]), Affine(right, biases[1])


# ---- activation functions


def _activations(mlp: nn.Module, block: nn.Module, device: torch.device) -> Iterator[str]:
    """Where candidates for the activation function are, the module's own first."""
    for owner, module in (("mlp", mlp), ("block", block)):
        yield from (f"{owner}:{place}" for place in places(module, device))
    yield from (f"function:{name}" for name in _FUNCTIONS)


def places(module: nn.Module, device: torch.device) -> Iterator[str]:
    """Where a module holds elementwise functions under a name that activations have."""
    for path, part in unwrap(module).named_modules():
        for attribute in ACTIVATION_NAMES:
            candidate = getattr(part, attribute, None)
            if callable(candidate) and is_elementwise(candidate, device):
                yield f"{path}.{attribute}".lstrip(".")


def placed(module: nn.Module, place: str) -> Activation:
    """The function at such a place, as it is now (it may have parameters)."""
    path, _, attribute = place.rpartition(".")
    function = getattr(unwrap(module).get_submodule(path), attribute)
    return unwrap(function) if isinstance(function, nn.Module) else function


def activation(where: str, mlp: nn.Module, block: nn.Module) -> Activation:
    """The activation function of a form."""
    owner, _, place = where.partition(":")
    return _FUNCTIONS[place] if owner == "function" else placed(mlp if owner == "mlp" else block, place)


def computed(weights: FeedForwardWeights, x: Tensor) -> Tensor:
    """The feed-forward itself, plainly, to see whether it is the model's."""
    hidden = weights.activation(_applied(weights.into, x))
    if weights.up is not None:
        hidden = hidden * _applied(weights.up, x)
    if weights.inner is not None:
        hidden = normed(hidden, replace(weights.inner, beta=None))
    return _applied(weights.out, hidden)


def _applied(projection: Affine, x: Tensor) -> Tensor:
    y = x @ projection.weight.to(x)
    return y if projection.bias is None else y + projection.bias.to(x)
