"""TransformerBridge (TransformerLens 3 and 4): the layout of a block is read off a short run of the model itself.

Hook names and configuration flags of the bridge do not say where a norm stands or what is added to what (BERT's
`hook_resid_mid` is the sum behind the feed-forward). The numbers do: a norm whose input equals x + attn is a post-norm,
one whose input equals x a pre-norm. So five tokens are run once per model, and each block's chain is found by asking
which tensors are sums of which. The result is names only; weights are read afresh whenever a cache is analysed.
"""

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .modules import activations, affine, is_elementwise, unwrap
from .structure import Add, Affine, Attention, Block, Chain, FeedForward, FeedForwardWeights, Norm, NormForm, Truth

_TOKENS = 5
_layouts: "weakref.WeakKeyDictionary[nn.Module, tuple[Block | None, ...]]" = weakref.WeakKeyDictionary()


class BridgeReader:
    """Reads a TransformerBridge."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._names: dict[int, list[str]] | None = None

    def blocks(self) -> tuple[Block | None, ...]:
        if self.model not in _layouts:
            trace = _short_run(self.model)
            stack = "blocks"
            _layouts[self.model] = tuple(
                _read_block(block, f"{stack}.{layer}", layer, trace)
                for layer, block in enumerate(getattr(self.model, stack))
            )
        return _layouts[self.model]

    def attention_output(self, step: Attention) -> Affine:
        return affine(self._find(step.module + ".o"), step.module + ".o")

    def value_bias(self, step: Attention) -> Tensor | None:
        value = getattr(self._find(step.module), "v", None)
        return None if value is None else getattr(unwrap(value), "bias", None)

    def norm_forms(self, step: Norm) -> tuple[NormForm, ...]:
        return norm_forms(self._find(step.module), getattr(self.model.cfg, "eps", 1e-5))

    def feed_forward(self, step: FeedForward) -> FeedForwardWeights:
        mlp = self._find(step.module)
        inner, outer, gate = (getattr(mlp, name, None) for name in ("in", "out", "gate"))
        if inner is None or outer is None:
            raise UnsupportedArchitectureError(
                f"{step.module} is a {type(mlp).__name__} without plain input and output projections. Scopes up to the "
                f"attention block work: tl_norms.block_norms(cache)."
            )
        activation = self._activation(step.module, mlp)
        linear, out = affine(inner, step.module + ".in"), affine(outer, step.module + ".out")
        if gate is None:
            return FeedForwardWeights(linear, None, out, activation)
        return FeedForwardWeights(affine(gate, step.module + ".gate"), linear, out, activation)

    def _activation(self, name: str, mlp: nn.Module):
        block = self._find(name.rpartition(".")[0])
        for module in (unwrap(mlp), unwrap(block)):
            for candidate in activations(module):
                if is_elementwise(candidate, next(mlp.parameters()).device):
                    return candidate
        raise UnsupportedArchitectureError(
            f"no elementwise activation function was found in {name} ({type(unwrap(mlp)).__name__}), so integrated "
            f"gradients have no closed form. Ask for scopes without 'ff': tl_norms.block_norms(cache)."
        )

    def projection(self, name: str) -> Affine:
        return affine(self._find(name), name)

    def equivalents(self, hook: str) -> tuple[str, ...]:
        if self._names is None:
            self._names = {}
            for name, point in self.model.hook_dict.items():
                self._names.setdefault(id(point), []).append(name)
        point = self.model.hook_dict.get(hook)
        return (hook, *self._names.get(id(point), ()))

    def _find(self, path: str) -> nn.Module:
        module = self.model
        for name in path.split("."):
            module = module[int(name)] if name.isdigit() else getattr(module, name)
        return module


def norm_forms(norm: nn.Module, default_eps: float) -> tuple[NormForm, ...]:
    """The forms a norm module may take, likeliest first; the cached numbers decide."""
    inner = unwrap(norm)
    if isinstance(inner, nn.Identity):
        raise UnsupportedArchitectureError(f"{norm} does not normalise.")  # never asked for: see _read_block
    weight, beta = getattr(inner, "weight", None), getattr(inner, "bias", None)
    declared = [getattr(inner, name, None) for name in ("eps", "variance_epsilon", "epsilon", "norm_eps")]
    epsilons = [float(value) for value in (*declared, default_eps) if value is not None]
    if isinstance(inner, nn.LayerNorm):
        return (NormForm(True, epsilons[0], weight, beta),)
    gains = [None] if weight is None else [weight, 1 + weight.float()]
    centers = (False, True) if getattr(norm, "uses_rms_norm", True) else (True, False)
    return tuple(
        NormForm(center, eps, gain, beta) for eps in dict.fromkeys(epsilons) for center in centers for gain in gains
    )


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """The user's own hooks neither fire nor change anything meanwhile; those the bridge is made of stay."""
    points = {id(point): point for point in model.hook_dict.values()}.values()
    saved = [(point, point._forward_hooks) for point in points]
    for point, hooks in saved:
        users = {handle.hook.id for handle in point.fwd_hooks if not _is_internal(handle)}
        point._forward_hooks = OrderedDict((key, hook) for key, hook in hooks.items() if key not in users)
    try:
        yield
    finally:
        for point, hooks in saved:
            point._forward_hooks = hooks


def _is_internal(handle) -> bool:
    """Whether the bridge itself placed a hook, to fire one hook point from another."""
    function = getattr(handle, "user_hook", None)
    return handle.is_permanent and (function is None or str(function.__module__).startswith("transformer_lens."))


def _short_run(model: nn.Module) -> Mapping[str, Tensor]:
    """The activations of a few tokens, by name."""
    size = int(getattr(model.cfg, "d_vocab", 0) or 0)
    tokens = (torch.arange(_TOKENS) + 5) % size if size > 0 else torch.arange(_TOKENS)
    device = next(model.parameters()).device
    with torch.no_grad(), _without_hooks(model):
        _, cache = model.run_with_cache(tokens[None].to(device), names_filter=lambda name: name.startswith("blocks."))
    return cache.cache_dict


def _distance(left: Tensor | None, right: Tensor | None) -> float:
    """The largest difference, relative to the largest number; infinite where they cannot be compared."""
    if left is None or right is None or left.shape != right.shape:
        return float("inf")
    return float((left - right).abs().max() / right.abs().max().clamp_min(1e-30))


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    """Equal up to the rounding of one sum."""
    distance = _distance(left, right)
    return distance < float("inf") and distance <= (8 if right.element_size() > 2 else 2) * torch.finfo(right.dtype).eps


class _Trace:
    """The tensors of one block, by the names of their hooks."""

    def __init__(self, prefix: str, tensors: Mapping[str, Tensor]):
        self.prefix, self._tensors = prefix, tensors

    def __call__(self, name: str) -> Tensor | None:
        value = self._tensors.get(f"{self.prefix}.{name}")
        return value if isinstance(value, Tensor) else None

    def first(self, *names: str) -> tuple[str, Tensor | None]:
        """The first of these hooks that fired, with its tensor."""
        return next(((name, self(name)) for name in names if self(name) is not None), (names[0], None))

    def hook(self, name: str) -> Truth:
        return Truth((f"{self.prefix}.{name}",))


def _read_block(block: nn.Module, prefix: str, layer: int, tensors: Mapping[str, Tensor]) -> Block | None:
    """The chain of one block, or None if it has no attention."""
    children = dict(block.named_children())
    trace = _Trace(prefix, tensors)
    attention = next((name for name in ("attn", "self_attn") if name in children), None)
    if attention is None:
        return None
    if "cross_attn" in children:
        raise UnsupportedArchitectureError(f"{prefix} has cross-attention; decoders of encoder-decoders are not read yet.")
    norms = [name for name in children if trace(f"{name}.hook_in") is not None and "Norm" in type(children[name]).__name__]
    stream, branch = trace("hook_in"), trace(f"{attention}.o.hook_out")
    if stream is None or branch is None:
        raise UnsupportedArchitectureError(
            f"{prefix} does not expose {'its input' if stream is None else f'{attention}.o.hook_out'}, "
            f"so its attention cannot be taken apart."
        )

    def following(value: Tensor) -> str | None:
        return next((name for name in norms if _same(trace(f"{name}.hook_in"), value)), None)

    def add_norm(chain: Chain, name: str, reads: int, scope: str | None) -> int:
        truth = trace.hook(f"{name}.hook_out")
        return chain.add(Norm(f"{prefix}.{name}", truth), reads, scope, truth)

    chain, scope = Chain(), "attn"
    mixed = Attention(f"{prefix}.{attention}", f"{prefix}.{attention}.hook_pattern", f"{prefix}.{attention}.v.hook_out")
    at = chain.add(mixed, 0, scope, trace.hook(f"{attention}.o.hook_out"))

    behind = following(branch)  # sandwich and post-norm-before-add
    if behind is not None:
        scope += "_ln"
        at, branch = add_norm(chain, behind, at, scope), trace(f"{behind}.hook_out")
        assert branch is not None

    out, out_name = trace("hook_out"), "hook_out"
    into_name, into = trace.first("mlp.hook_in", "mlp.in.hook_in", "mlp.gate.hook_in")
    hidden_name, hidden = trace.first("mlp.out.hook_out", "mlp.hook_out")
    if out is None or into is None or hidden is None:
        raise UnsupportedArchitectureError(f"{prefix} has no feed-forward whose input, output and sum are exposed.")
    in_front = next((name for name in norms if _same(trace(f"{name}.hook_out"), into)), None)
    read = into if in_front is None else trace(f"{in_front}.hook_in")  # what the feed-forward's norm stands on
    assert read is not None

    if _distance(read, stream) < _distance(read, stream + branch):  # parallel
        inner = 0 if in_front is None else add_norm(chain, in_front, 0, None)
        other = chain.add(FeedForward(f"{prefix}.mlp"), inner)
        both = Truth(tuple(f"{prefix}.{name}" for name in (f"{attention}.o.hook_out", hidden_name)))
        at = chain.add(Add(other), at, scope + "_ff", both)
        if not _same(stream + branch + hidden, out):
            raise UnsupportedArchitectureError(f"{prefix}: its output is not input + attention + feed-forward.")
        chain.add(Add(0), at, scope + "_ff_res", trace.hook(out_name))
        return Block(layer, f"{prefix}.hook_in", tuple(chain.steps))

    if not _same(stream + branch, read):
        raise UnsupportedArchitectureError(
            f"{prefix}: what its feed-forward reads is not the block's input plus its attention, so the residual "
            f"connection is of a kind that is not understood."
        )
    scope += "_res"
    read_name = into_name if in_front is None else f"{in_front}.hook_in"
    middle = chain.add(Add(0), at, scope, trace.hook(read_name))
    inner, streams = middle, [(middle, read)]
    if in_front is not None:
        scope += "_ln"
        inner = add_norm(chain, in_front, middle, scope)
        streams.append((inner, into))
    scope += "_ff"
    at = chain.add(FeedForward(f"{prefix}.mlp"), inner, scope, trace.hook(hidden_name))
    behind = following(hidden)
    if behind is not None:
        scope += "_ln"
        at, hidden = add_norm(chain, behind, at, scope), trace(f"{behind}.hook_out")
        assert hidden is not None
    scope += "_res"
    for point, value in streams:
        total = value + hidden
        if _same(total, out):  # pre-norm: the sum leaves the block
            chain.add(Add(point), at, scope, trace.hook(out_name))
            return Block(layer, f"{prefix}.hook_in", tuple(chain.steps))
        last = following(total)
        if last is not None and _same(trace(f"{last}.hook_out"), out):  # post-norm: it is normalised first
            at = chain.add(Add(point), at, scope, trace.hook(f"{last}.hook_in"))
            add_norm(chain, last, at, scope + "_ln")
            return Block(layer, f"{prefix}.hook_in", tuple(chain.steps))
    raise UnsupportedArchitectureError(f"{prefix}: its output is not the stream plus its feed-forward, normalised or not.")
