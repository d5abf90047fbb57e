"""TransformerBridge (TransformerLens 3 and 4): where its layout is kept, and the weights behind each step."""

import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UnsupportedArchitectureError
from .experts import is_mixture, read_mixture
from .layout import read_layout
from .modules import activations, affine, float_attributes, is_elementwise, norm_forms, unwrap
from .short_run import without_user_hooks
from .structure import Affine, Attention, Block, FeedForward, FeedForwardWeights, Norm, NormForm
from .trace import distance

_layouts: "weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[Block | None, ...]]]" = weakref.WeakKeyDictionary()
# activations that transformers calls as functions, not as modules that could be found
_FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    functional.silu,
    functional.gelu,
    functional.relu,
    lambda x: functional.gelu(x, approximate="tanh"),
    lambda x: functional.relu(x).square(),
)


class BridgeReader:
    """Reads one stack of blocks of a TransformerBridge."""

    def __init__(self, model: nn.Module, stack: str):
        self.model, self.stack = model, stack
        self._eps = float(getattr(model.cfg, "eps", 1e-5))
        self._aliases: dict[str, tuple[str, ...]] | None = None

    def blocks(self) -> tuple[Block | None, ...]:
        known = _layouts.setdefault(self.model, {})
        if self.stack not in known:
            known[self.stack] = read_layout(self.model, self.stack)
        return known[self.stack]

    def attention_output(self, step: Attention) -> Affine:
        return affine(self._find(step.module + ".o"), step.module + ".o")

    def value_bias(self, step: Attention) -> Tensor | None:
        value = getattr(self._find(step.module), "v", None)
        return None if value is None else getattr(unwrap(value), "bias", None)

    def norm_forms(self, step: Norm) -> tuple[NormForm, ...]:
        return norm_forms(self._find(step.module), self._eps)

    def inner_norm(self, step: Attention) -> tuple[NormForm, ...]:
        assert step.inner_norm is not None
        return norm_forms(self._find(step.inner_norm), self._eps)

    @torch.no_grad()
    def feed_forward(self, step: FeedForward, x: Tensor, y: Tensor | None) -> tuple[FeedForwardWeights, ...]:
        mlp = self._find(step.module)
        if is_mixture(mlp):
            with without_user_hooks(self.model):
                return read_mixture(mlp, step.module, x, y, self._fitting)
        return (self._fitting(mlp, step.module, x, y),)

    def _fitting(self, mlp: nn.Module, name: str, x: Tensor, y: Tensor | None) -> FeedForwardWeights:
        """The form of a plain or gated feed-forward that gives y for x; the likeliest one without a y."""
        closest, least = None, float("inf")
        for candidate in self._forms(mlp, name):
            if y is None:
                return candidate
            off = distance(_unpadded(run(candidate, x), y), y)
            if off < least:
                closest, least = candidate, off
            if off < 1e-5:
                break
        if closest is None or least > 0.05:
            raise UnsupportedArchitectureError(
                f"{name} ({type(unwrap(mlp)).__name__}): no elementwise activation function of the model explains its "
                f"output (closest: off by {least:.1e}): either a hook edited this block during the run, or integrated "
                f"gradients have no closed form here. Ask for scopes without 'ff': tl_norms.block_norms(cache)."
            )
        return closest

    def _forms(self, mlp: nn.Module, name: str) -> Iterator[FeedForwardWeights]:
        """Forms that a feed-forward with these parts may take, likeliest first."""
        inner, outer, gate = _projections(mlp, name)
        linear, out = affine(inner, name + ".in"), affine(outer, name + ".out")
        if gate is not None:
            gated = affine(gate, name + ".gate")
            pairs: list[tuple[Affine, Affine | None]] = [(gated, linear), (linear, gated)]
        elif linear.weight.shape[1] == 2 * out.weight.shape[0]:  # gate and up in one projection
            halves = _halves(linear)
            pairs = [halves, (halves[1], halves[0])]
        else:
            pairs = [(linear, None)]
        inners: list[NormForm | None] = [None]
        if unwrap(mlp) is not unwrap(self._find(name.rpartition(".")[0])):  # some feed-forwards are the block itself
            norms = [m for _, m in unwrap(mlp).named_children() if "norm" in type(m).__name__.lower()]
            inners = [form for norm in norms for form in norm_forms(norm, self._eps)] or inners
        for activation in self._activations(name, mlp):
            for into, up in pairs:
                for form in inners:
                    yield FeedForwardWeights(into, up, out, activation, inner=form)
        for factor in float_attributes(unwrap(mlp)):  # Falcon-H1 multiplies in front of the activation
            for activation in self._activations(name, mlp):
                for into, up in pairs:
                    scaled = Affine(into.weight * factor, None if into.bias is None else into.bias * factor)
                    yield FeedForwardWeights(scaled, up, out, activation)

    def _activations(self, name: str, mlp: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
        block = self._find(name.rpartition(".")[0])
        device = next(mlp.parameters()).device
        for module in (unwrap(mlp), unwrap(block)):
            for candidate in activations(module):
                if is_elementwise(candidate, device):
                    yield candidate
        yield from _FUNCTIONS

    def projection(self, name: str) -> Affine:
        return affine(self._find(name), name)

    def output_projection(self, name: str) -> Affine:
        part = self._find(name)
        return affine(getattr(part, "o", None) or part.out, name)

    @torch.no_grad()
    def recompute(self, step: Norm | FeedForward, x: Tensor) -> Tensor:
        module = unwrap(self._find(step.module))
        parameter = next(module.parameters(), None)
        return module(x if parameter is None else x.to(parameter)).to(x)

    def equivalents(self, hook: str) -> tuple[str, ...]:
        if self._aliases is None:
            points = self.model.hook_dict  # one point under several names; made anew at every access
            names: dict[int, list[str]] = {}
            for name, point in points.items():
                names.setdefault(id(point), []).append(name)
            self._aliases = {name: tuple(names[id(point)]) for name, point in points.items()}
        return self._aliases.get(hook, (hook,))

    def _find(self, path: str) -> nn.Module:
        module = self.model
        for name in path.split("."):
            module = module[int(name)] if name.isdigit() else getattr(module, name)
        return module


def _projections(mlp: nn.Module, name: str) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    """Input, output and gate projection; from the wrapped module where TransformerLens does not name them."""
    inner, outer, gate = (getattr(mlp, part, None) for part in ("in", "out", "gate"))
    if inner is not None and outer is not None:
        return inner, outer, gate
    linears = [module for _, module in unwrap(mlp).named_children() if isinstance(unwrap(module), nn.Linear)]
    shapes = [(unwrap(module).in_features, unwrap(module).out_features) for module in linears]
    if len(linears) == 3 and shapes[0] == shapes[1] == shapes[2][::-1]:
        return linears[1], linears[2], linears[0]
    raise UnsupportedArchitectureError(
        f"{name} ({type(unwrap(mlp)).__name__}) has no plain input and output projections. Scopes up to the "
        f"attention block work: tl_norms.block_norms(cache)."
    )


def run(weights: FeedForwardWeights, x: Tensor) -> Tensor:
    """The feed-forward itself, plainly, to see whether it is the model's."""
    hidden = weights.activation(_apply(weights.into, x))
    if weights.up is not None:
        hidden = hidden * _apply(weights.up, x)
    if weights.inner is not None:
        norm = weights.inner
        centred = hidden - hidden.mean(-1, keepdim=True) if norm.center else hidden
        hidden = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        hidden = hidden if norm.gain is None else hidden * norm.gain.to(hidden)
    return _apply(weights.out, hidden)


def _unpadded(made: Tensor, y: Tensor) -> Tensor:
    """Zero where the whole of y is: padded positions, which a mask has emptied."""
    return made.masked_fill(~y.any(-1, keepdim=True), 0)


def _apply(affine: Affine, x: Tensor) -> Tensor:
    y = x @ affine.weight.to(x)
    return y if affine.bias is None else y + affine.bias.to(x)


def _halves(both: Affine) -> tuple[Affine, Affine]:
    left, right = both.weight.chunk(2, dim=1)
    biases = (None, None) if both.bias is None else both.bias.chunk(2)
    return Affine(left, biases[0]), Affine(right, biases[1])
