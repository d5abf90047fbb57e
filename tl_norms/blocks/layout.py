"""The layout of a bridge's blocks, read off a short run of the model itself.

Hook names and configuration flags of the bridge do not say where a norm stands or what is added to what (BERT's
`hook_resid_mid` is the sum behind the feed-forward). The numbers do: a norm whose input equals x + attn is a post-norm,
one whose input equals x a pre-norm. So five tokens are run once per model, and each block's chain is found by asking
which tensors are sums of which. The result is names and numbers only; weights are read afresh for every cache.
"""

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .attention_layout import read_attention
from .modules import float_attributes, unwrap
from .structure import Add, Block, Chain, FeedForward, Norm, Truth
from .trace import Trace, combination, same

_TOKENS = 5
_FEED_FORWARDS = ("mlp", "moe", "shared_mlp", "feed_forward")


@torch.no_grad()
def read_layout(model: nn.Module, stack: str) -> tuple[Block | None, ...]:
    """The blocks of one stack of a bridge, None for a layer without attention."""
    modules = list(getattr(model, stack))
    tensors = _short_run(model, stack)
    if _attention_is_silent(stack, len(modules), tensors):  # then a sum with it and one without look alike
        tensors = _short_run(model, stack, disturbed=True)
    traces = [Trace(f"{stack}.{layer}", tensors) for layer in range(len(modules))]
    return tuple(
        _Reading(model, block, layer, traces[layer], traces[layer + 1 : layer + 2]).block()
        for layer, block in enumerate(modules)
    )


class _Reading:
    """The chain of one block, while it is found."""

    def __init__(self, model: nn.Module, block: nn.Module, layer: int, trace: Trace, following: list[Trace]):
        self.model, self.module, self.layer, self.trace = model, block, layer, trace
        self.children = {name: child for name, child in block.named_children() if not name.startswith("_")}
        self.norms = [
            n for n in self.children if "norm" in _kind(self.children[n]) and trace(f"{n}.hook_in") is not None
        ]
        self.chain = Chain()
        # OpenAI-GPT's blocks return a list, which no hook sees: the next block's input is the same tensor
        self.out, self.out_truth = trace("hook_out"), trace.truth("hook_out")
        if self.out is None and following:
            self.out, self.out_truth = following[0]("hook_in"), following[0].truth("hook_in")

    def block(self) -> Block | None:
        attention = next((n for n in ("attn", "self_attn") if n in self.children), None)
        if attention is None:
            self._refuse_hidden_attention()
            return None
        stream = self.trace("hook_in")
        branch = self.trace(f"{attention}.o.hook_out")
        if stream is None or branch is None:
            missing = (
                "its input" if stream is None else f"{attention}.o.hook_out (its attention has no output projection)"
            )
            raise self._refused(f"TransformerLens does not expose {missing}")
        if "cross_attn" in self.children:
            raise self._refused("it has cross-attention, and decoders of encoder-decoders are not analysed")
        self.stream = stream
        at = self._step(
            read_attention(self.children[attention], self.trace, attention), 0, "attn", f"{attention}.o.hook_out"
        )
        at, scope, branch = self._norm_behind(at, "attn", branch)
        self._feed_forward(at, scope, branch, attention)
        return Block(self.layer, f"{self.trace.prefix}.hook_in", tuple(self.chain.steps))

    def _feed_forward(self, at: int, scope: str, branch: Tensor, attention: str) -> None:
        names = [n for n in _FEED_FORWARDS if n in self.children]
        into_name, into = self.trace.first(
            *(f"{n}{part}" for n in names for part in (".hook_in", ".in.hook_in", ".gate.hook_in"))
        )
        if not names or into is None:
            raise self._refused("no feed-forward of it exposes its input")
        into = into.reshape(self.stream.shape) if into.numel() == self.stream.numel() else into
        in_front = next((n for n in self.norms if same(self.trace(f"{n}.hook_out"), into)), None)
        read = into if in_front is None else self.trace(f"{in_front}.hook_in")
        assert read is not None
        if same(read, self.stream) and not same(read, self.stream + branch):
            self._parallel(at, scope, branch, names, in_front)
        else:
            self._sequential(at, scope, branch, names, in_front, into_name, into, read, attention)

    def _parallel(self, at: int, scope: str, branch: Tensor, names: list[str], in_front: str | None) -> None:
        """The feed-forward reads the block's input, like the attention; one sum of three."""
        inner = 0 if in_front is None else self._norm(in_front, 0, None)
        other, hidden, plus = self._hidden(names, inner, None)
        fitted = None if self.out is None else combination(self.out, [self.stream, branch, hidden])
        if fitted is None or abs(fitted[1] - fitted[2]) > 1e-6:
            raise self._refused("its output is not input + attention + feed-forward")
        attended = self.chain.steps[at - 1].truth
        assert attended is not None
        both = Truth(attended.plus + plus)
        at = self.chain.add(Add(other), at, scope + "_ff", both)
        stream_scale, branch_scale = self._snapped(fitted[0]), self._snapped(fitted[1])
        self.chain.add(Add(0, branch_scale, stream_scale), at, scope + "_ff_res", self.out_truth)

    def _sequential(self, at, scope, branch, names, in_front, into_name, into, read, attention) -> None:
        """The feed-forward reads the sum of stream and attention, normed in front of it, behind it, or not."""
        bases: list[tuple[int | None, Tensor]] = [(0, self.stream)]
        pre = next((n for n in self.norms if same(self.trace(f"{n}.hook_in"), self.stream)), None)
        if pre is not None:  # BLOOM can take the residual behind the norm
            normed = self.trace(f"{pre}.hook_out")
            assert normed is not None
            bases.append((None, normed))
        beside = [found for n in self.children if n not in (*names, attention) and (found := self._beside(n))]
        sums = [(point, combination(read, [base, branch, *(value for _, value in beside)])) for point, base in bases]
        found = next(((point, fitted) for point, fitted in sums if fitted is not None), None)
        if found is None:
            raise self._refused("what its feed-forward reads is not its input plus its attention, scaled or not")
        point, fitted = found
        if point is None:
            assert pre is not None
            point = self._norm(pre, 0, None)
        others = tuple((hook, self._snapped(c)) for (hook, _), c in zip(beside, fitted[2:], strict=True))
        scope += "_res"
        read_name = into_name if in_front is None else f"{in_front}.hook_in"
        add = Add(point, self._snapped(fitted[1]), self._snapped(fitted[0]), others)
        inner = middle = self._step(add, at, scope, read_name)
        streams = [(middle, read)]
        if in_front is not None:
            scope += "_ln"
            inner = self._norm(in_front, middle, scope)
            streams.append((inner, into))
        scope += "_ff"
        at, hidden, _ = self._hidden(names, inner, scope)
        at, scope, hidden = self._norm_behind(at, scope, hidden)
        self._leave(at, scope + "_res", hidden, streams)

    def _leave(self, at: int, scope: str, hidden: Tensor, streams: list[tuple[int, Tensor]]) -> None:
        """The last residual connection, and the norm behind it if there is one."""
        targets = [("out", self.out)] if self.out is not None else []
        targets += [(name, self.trace(f"{name}.hook_in")) for name in self.children]
        for point, value in streams:
            for name, target in targets:
                fitted = None if target is None else combination(target, [value, hidden])
                if fitted is None:
                    continue
                add = Add(point, self._snapped(fitted[1]), self._snapped(fitted[0]))
                if name == "out":
                    self.chain.add(add, at, scope, self.out_truth)
                    return
                if name not in self.norms and same(target, value + hidden):  # Gemma 4 feeds per-layer inputs in here
                    self._step(add, at, scope, f"{name}.hook_in")
                    return
                if name in self.norms and (self.out is None or same(self.trace(f"{name}.hook_out"), self.out)):
                    at = self._step(add, at, scope, f"{name}.hook_in")
                    self._norm(name, at, scope + "_ln")
                    return
        raise self._refused("its output is not the stream plus its feed-forward, scaled or normalised or neither")

    def _hidden(self, names: list[str], reads: int, scope: str | None) -> tuple[int, Tensor, tuple[str, ...]]:
        """The feed-forwards of a block, added: the point, its value and the hooks whose sum it is."""
        points, values, hooks = [], [], []
        for name in names:
            hook, value = self.trace.first(f"{name}.out.hook_out", f"{name}.hook_out")
            if value is None:
                raise self._refused(f"{name} does not expose its output")
            truth = self.trace.truth(hook)
            single = len(names) == 1
            step = FeedForward(f"{self.trace.prefix}.{name}", truth)
            points.append(self.chain.add(step, reads, scope if single else None, truth if single else None))
            values.append(value.reshape(self.stream.shape))
            hooks += truth.plus
        at, total = points[0], values[0]
        for point, value in zip(points[1:], values[1:], strict=True):
            total = total + value
            last = point == points[-1]
            at = self.chain.add(
                Add(point), at, scope if last else None, Truth(tuple(hooks)) if last and scope else None
            )
        return at, total, tuple(hooks)

    def _norm_behind(self, at: int, scope: str, value: Tensor) -> tuple[int, str, Tensor]:
        """A norm between a branch and its sum (sandwich and post-norm layouts), if there is one."""
        name = next((n for n in self.norms if same(self.trace(f"{n}.hook_in"), value)), None)
        if name is None:
            return at, scope, value
        scope += "_ln"
        normed = self.trace(f"{name}.hook_out")
        assert normed is not None
        return self._norm(name, at, scope), scope, normed

    def _norm(self, name: str, reads: int, scope: str | None) -> int:
        truth = self.trace.truth(f"{name}.hook_out")
        return self.chain.add(Norm(f"{self.trace.prefix}.{name}", truth), reads, scope, truth)

    def _step(self, operation, reads: int, scope: str, hook: str) -> int:
        return self.chain.add(operation, reads, scope, self.trace.truth(hook))

    def _beside(self, name: str) -> tuple[str, Tensor] | None:
        """What another branch of the block that mixes positions writes, under its hook's whole name."""
        hook, value = self.trace.first(f"{name}.out_proj.hook_out", f"{name}.hook_out")
        if value is None or value.shape != self.stream.shape or not _mixes(self.children[name]):
            return None
        return f"{self.trace.prefix}.{hook}", value

    def _snapped(self, fitted: float) -> float:
        """One, or the multiplier that the model itself holds: a fitted number is only as exact as the run."""
        if abs(fitted - 1) < 1e-4:
            return 1.0
        known = float_attributes(unwrap(self.module), getattr(self.model.original_model, "config", None))
        nearest = min(known, key=lambda value: abs(value - fitted), default=fitted)
        return nearest if abs(nearest - fitted) < 1e-4 * abs(fitted) else fitted

    def _refuse_hidden_attention(self) -> None:
        """A layer whose attention is inside an opaque module is refused, not reported as a layer without attention."""
        for name, module in unwrap(self.module).named_modules():
            queries = any(child.startswith("q") or "query" in child for child, _ in module.named_children())
            if type(module).__name__.endswith("Attention") and queries:  # RWKV calls a recurrence attention
                raise self._refused(f"its attention ({name}) is inside a component without hooks")

    def _refused(self, why: str) -> UnsupportedArchitectureError:
        kind = type(unwrap(self.module)).__name__
        return UnsupportedArchitectureError(
            f"{self.trace.prefix} ({kind}): {why}, so it cannot be taken apart exactly."
        )


def _kind(module: nn.Module) -> str:
    return (type(module).__name__ + type(unwrap(module)).__name__).lower()


def _mixes(module: nn.Module) -> bool:
    """A branch beside the attention that mixes positions."""
    return any(word in _kind(module) for word in ("mixer", "mamba", "ssm", "conv", "deltanet"))


@contextmanager
def without_user_hooks(model: nn.Module) -> Iterator[None]:
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


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout, which would keep sums from being sums; every module's mode is put back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _attention_is_silent(stack: str, n_layers: int, tensors: Mapping[str, Tensor]) -> bool:
    """Whether some attention writes nothing that its residual connection would show."""
    for layer in range(n_layers):
        trace = Trace(f"{stack}.{layer}", tensors)
        stream, branch = trace("hook_in"), trace.first("attn.o.hook_out", "self_attn.o.hook_out")[1]
        if stream is not None and branch is not None and same(stream, stream + branch):
            return True
    return False


def _disturb(tensor: Tensor, hook: object) -> Tensor:
    """Fixed numbers, as large as a typical activation, on what attention writes."""
    steps = torch.arange(tensor.numel(), device=tensor.device, dtype=torch.float32).reshape(tensor.shape)
    return tensor + (steps * steps * 0.7).sin().to(tensor.dtype)


def _short_run(model: nn.Module, stack: str, disturbed: bool = False) -> Mapping[str, Tensor]:
    """The activations of a few tokens, by name; `disturbed`, with something added to all attention outputs."""
    size = int(getattr(model.cfg, "d_vocab", 0) or 0)
    tokens = (torch.arange(_TOKENS) + 5) % size if size > 0 else torch.arange(_TOKENS)
    tokens = tokens[None].to(next(model.parameters()).device)
    extra = {"decoder_input": tokens} if hasattr(model, "decoder_blocks") else {}
    try:
        with torch.no_grad(), _in_eval_mode(model), without_user_hooks(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bridge names hooks that are switched off
            outputs = [name for name in dict(model.hook_dict.items()) if name.endswith("attn.o.hook_out") and disturbed]
            with model.hooks(fwd_hooks=[(name, _disturb) for name in outputs]):
                _, cache = model.run_with_cache(tokens, names_filter=lambda n: n.startswith(stack + "."), **extra)
    except Exception as error:  # whatever a model raises here, its layout cannot be read
        raise UnsupportedArchitectureError(
            f"{type(model.original_model).__name__} could not be run on {_TOKENS} tokens to read its layout "
            f"({type(error).__name__}: {error})."
        ) from error
    return cache.cache_dict
