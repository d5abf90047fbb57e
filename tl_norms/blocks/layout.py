"""The layout of a bridge's blocks, read off a short run of the model itself.

Hook names and configuration flags of the bridge do not say where a norm is or what is added to what (BERT's
`hook_resid_mid` is the sum after the feed-forward). The numbers do: a norm whose input equals x + attn is a post-norm,
one whose input equals x a pre-norm. So five tokens are run once per model (see `short_run`), and each block's chain is
found by asking which activations are sums of which. The result is names and numbers only; weights are read afresh for
every cache.
"""

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .attention_layout import read_attention
from .experts import is_mixture, mixture_kind
from .forms import feed_forward_kind, norm_kind
from .modules import component, default_eps, float_attributes, unwrap
from .short_run import read_blocks
from .structure import Add, Block, Chain, CrossAttention, FeedForward, FeedForwardKind, Norm, Operation, Truth
from .trace import Trace, combination, same

_FEED_FORWARDS = ("mlp", "moe", "shared_mlp", "feed_forward")


@torch.no_grad()
def read_layout(model: nn.Module, stack: str) -> tuple[Block | None, ...]:
    """The blocks of one stack of a bridge, None for a layer without attention."""
    modules = list(getattr(model, stack))

    def read(layer: int, trace: Trace) -> Block | None:
        following = f"{stack}.{layer + 1}.hook_in" if layer + 1 < len(modules) else None
        return _ChainFinder(model, modules[layer], layer, trace, following).block()

    return read_blocks(model, stack, read)


class _ChainFinder:
    """The chain of one block, while it is found."""

    def __init__(self, model: nn.Module, block: nn.Module, layer: int, trace: Trace, following: str | None):
        self.model, self.module, self.layer, self.trace = model, block, layer, trace
        self.children = {name: child for name, child in block.named_children() if not name.startswith("_")}
        self.norms = [
            n for n in self.children if "norm" in _kind(self.children[n]) and trace(f"{n}.hook_in") is not None
        ]
        self.chain = Chain()
        config = getattr(getattr(model, "original_model", None), "config", None)
        self.known = float_attributes(unwrap(block), config)
        # OpenAI-GPT's blocks return a list, which no hook sees: the next block's input is the same tensor
        self.out, self.out_truth = trace("hook_out"), trace.truth("hook_out")
        if self.out is None and following is not None:
            self.out, self.out_truth = trace.output, Truth((following,))

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
        self.stream = stream
        step = read_attention(self.children[attention], self.trace, attention, default_eps(self.model))
        at = self._step(step, 0, "attn", f"{attention}.o.hook_out")
        at, scope, branch = self._norm_after(at, "attn", branch)
        base = (0, stream)
        if "cross_attn" in self.children:
            at, scope, branch, base = self._cross_attention(at, scope, branch)
        self._feed_forward(at, scope, branch, base)
        return Block(self.layer, f"{self.trace.prefix}.hook_in", tuple(self.chain.steps))

    def _cross_attention(self, at: int, scope: str, branch: Tensor) -> tuple[int, str, Tensor, tuple[int, Tensor]]:
        """The stream plus attention, and cross-attention: its point, scope and value, and the stream it is added to.

        A norm before cross-attention acts on queries only, which the pattern holds: it is a step where the stream
        itself goes on from it (post-norm), and none where it is on the side (pre-norm).
        """
        name = "cross_attn"
        into_name, into = self.trace.first(f"{name}.q.hook_in", f"{name}.hook_in")
        crossed = self.trace(f"{name}.o.hook_out")
        if into is None or crossed is None:
            raise self._refused("its cross-attention does not expose its input and output")
        before = self._norm_before(into)
        read = into if before is None else self._heard(f"{before}.hook_in")
        factors = combination(read, [self.stream, branch], self.known)
        if factors is None:
            raise self._refused("what its cross-attention reads is not its input plus its self-attention")
        scope += "_res"
        add = Add(0, factors[1], factors[0])
        base = self._step(add, at, scope, into_name if before is None else f"{before}.hook_in"), read
        after = self._norm_of(crossed)
        written = crossed if after is None else self._heard(f"{after}.hook_out")
        following, _ = self._entered_feed_forward()
        if before is not None and (following is None or combination(following, [read, written], self.known) is None):
            scope += "_ln"
            base = self._norm(before, base[0], scope), into
        step = read_attention(self.children[name], self.trace, name, default_eps(self.model), CrossAttention)
        if step.gate is not None or step.inner_norm is not None:
            raise self._refused("its cross-attention has a gate or a norm before its output projection")
        scope += "_cross"
        at, scope, crossed = self._norm_after(self._step(step, 0, scope, f"{name}.o.hook_out"), scope, crossed)
        return at, scope, crossed, base

    def _feed_forward(self, at: int, scope: str, branch: Tensor, base: tuple[int, Tensor]) -> None:
        read, before = self._entered_feed_forward()
        if read is None:
            raise self._refused("no feed-forward of it exposes its input")
        names = [n for n in _FEED_FORWARDS if n in self.children]
        if same(read, self.stream, than=branch):
            self._parallel(at, scope, branch, names, before)
        else:
            self._sequential(at, scope, branch, base, names, before, read)

    def _entered_feed_forward(self) -> tuple[Tensor | None, str | None]:
        """What the feed-forward reads from the stream, before its own norm; and that norm."""
        _, into = self._into_feed_forward()
        if into is None:
            return None, None
        before = self._norm_before(into)
        return (into if before is None else self._heard(f"{before}.hook_in")), before

    def _into_feed_forward(self) -> tuple[str, Tensor | None]:
        """What enters the feed-forward itself, and its hook."""
        names = [n for n in _FEED_FORWARDS if n in self.children]
        name, into = self.trace.first(
            *(f"{n}{part}" for n in names for part in (".hook_in", ".in.hook_in", ".gate.hook_in"))
        )
        if into is not None and into.numel() == self.stream.numel():
            into = into.reshape(self.stream.shape)
        return name, into

    def _norm_before(self, into: Tensor) -> str | None:
        """The norm whose output this is."""
        norms = [n for n in self.norms if same(self.trace(f"{n}.hook_out"), into)]
        if len({id(unwrap(self.children[n])) for n in norms}) > 1:
            raise self._refused(f"its norms {' and '.join(norms)} write the same, so that its layout is ambiguous")
        return next(iter(norms), None)

    def _norm_of(self, value: Tensor) -> str | None:
        """The norm whose input this is."""
        return next((n for n in self.norms if same(self.trace(f"{n}.hook_in"), value)), None)

    def _heard(self, hook: str) -> Tensor:
        value = self.trace(hook)
        if value is None:
            raise self._refused(f"TransformerLens does not expose {hook}")
        return value

    def _parallel(self, at: int, scope: str, branch: Tensor, names: list[str], before: str | None) -> None:
        """The feed-forward reads the block's input, like the attention; one sum of three."""
        inner, into = (0, self.stream)
        if before is not None:
            inner, into = self._norm(before, 0, None), self._heard(f"{before}.hook_out")
        other, hidden, plus = self._hidden(names, inner, None, into)
        after = self._norm_of(hidden)
        if after is not None:
            other, hidden = self._norm(after, other, None), self._heard(f"{after}.hook_out")
            plus = self.trace.truth(f"{after}.hook_out").plus
        factors = None
        if self.out is not None:
            factors = combination(self.out, [self.stream, branch, hidden], self.known)
        if factors is None or abs(factors[1] - factors[2]) > 1e-6 * abs(factors[1]):
            seen = "" if factors is None else " ({:.4g}, {:.4g} and {:.4g} times)".format(*factors)
            raise self._refused(f"its output is not a factor of its input plus one of attention + feed-forward{seen}")
        attended = self.chain.steps[at - 1].truth
        both = None if attended is None else Truth(attended.plus + plus)
        at = self.chain.add(Add(other), at, scope + "_ff", both)
        self.chain.add(Add(0, factors[1], factors[0]), at, scope + "_ff_res", self.out_truth)

    def _sequential(
        self,
        at: int,
        scope: str,
        branch: Tensor,
        base: tuple[int, Tensor],
        names: list[str],
        before: str | None,
        read: Tensor,
    ) -> None:
        """The feed-forward reads the sum of stream and attention, normed before it, after it, or not."""
        into_name, into = self._into_feed_forward()
        if into is None:
            raise self._refused("no feed-forward of it exposes its input")
        beside = [other for n in self.children if n not in names and (other := self._beside(n))]
        summed = [branch, *(value for _, value in beside)]
        point: int | None = base[0]
        factors = combination(read, [base[1], *summed], self.known)
        pre = self._norm_of(self.stream)
        if factors is None and pre is not None:  # BLOOM can take the residual after the norm
            factors = combination(read, [self._heard(f"{pre}.hook_out"), *summed], self.known)
            point = self._norm(pre, 0, None)
        if factors is None:
            raise self._refused("what its feed-forward reads is not its input plus its attention, scaled or not")
        others = tuple((hook, factor) for (hook, _), factor in zip(beside, factors[2:], strict=True))
        scope += "_res"
        read_name = into_name if before is None else f"{before}.hook_in"
        inner = middle = self._step(Add(point, factors[1], factors[0], others), at, scope, read_name)
        streams = [(middle, read)]
        if before is not None:
            scope += "_ln"
            inner = self._norm(before, middle, scope)
            streams.append((inner, into))
        scope += "_ff"
        at, hidden, _ = self._hidden(names, inner, scope, into)
        at, scope, hidden = self._norm_after(at, scope, hidden)
        self._leave(at, scope + "_res", hidden, streams)

    def _leave(self, at: int, scope: str, hidden: Tensor, streams: list[tuple[int, Tensor]]) -> None:
        """The last residual connection, and the norm after it if there is one."""
        targets = [("out", self.out)] if self.out is not None else []
        targets += [(name, self.trace(f"{name}.hook_in")) for name in self.children]
        for point, value in streams:
            for name, target in targets:
                factors = None if target is None else combination(target, [value, hidden], self.known)
                if factors is None:
                    continue
                add = Add(point, factors[1], factors[0])
                if name == "out":
                    self.chain.add(add, at, scope, self.out_truth)
                    return
                if name not in self.norms and factors == [1.0, 1.0]:  # Gemma 4 feeds per-layer inputs in here
                    self._step(add, at, scope, f"{name}.hook_in")
                    return
                if name in self.norms and (self.out is None or same(self.trace(f"{name}.hook_out"), self.out)):
                    at = self._step(add, at, scope, f"{name}.hook_in")
                    self._norm(name, at, scope + "_ln")
                    return
        raise self._refused("its output is not the stream plus its feed-forward, scaled or normalised or neither")

    def _hidden(
        self, names: list[str], reads: int, scope: str | None, into: Tensor
    ) -> tuple[int, Tensor, tuple[str, ...]]:
        """The feed-forwards of a block, added: the point, its value and the hooks whose sum it is."""
        points, values, hooks = [], [], []
        for name in names:
            hook, value = self.trace.first(f"{name}.out.hook_out", f"{name}.hook_out")
            if value is None:
                raise self._refused(f"{name} does not expose its output")
            truth = self.trace.truth(hook)
            single = len(names) == 1
            values.append(value.reshape(self.stream.shape))
            step = self._decided(name, truth, into, values[-1])
            points.append(self.chain.add(step, reads, scope if single else None, truth if single else None))
            hooks += truth.plus
        at, total = points[0], values[0]
        for point, value in zip(points[1:], values[1:], strict=True):
            total = total + value
            last = point == points[-1]
            at = self.chain.add(
                Add(point), at, scope if last else None, Truth(tuple(hooks)) if last and scope else None
            )
        return at, total, tuple(hooks)

    def _decided(self, name: str, truth: Truth, x: Tensor, y: Tensor) -> FeedForward:
        """A feed-forward with its form. One that has no form is refused when its scope is asked for, not before."""
        path = f"{self.trace.prefix}.{name}"
        module = self.children[name]
        try:
            if is_mixture(module):
                return FeedForward(path, truth, mixture_kind(module, path, x, self._feed_forward_kind))
            return FeedForward(path, truth, self._feed_forward_kind(module, path, x, y))
        except UnsupportedArchitectureError as error:
            return FeedForward(path, truth, refused=str(error))

    def _feed_forward_kind(self, module: nn.Module, path: str, x: Tensor, y: Tensor) -> FeedForwardKind:
        owner = component(self.model, path.rpartition(".")[0])
        return feed_forward_kind(module, owner, path, x, y, default_eps(self.model))

    def _norm_after(self, at: int, scope: str, value: Tensor) -> tuple[int, str, Tensor]:
        """A norm between a branch and its sum (sandwich and post-norm layouts), if there is one."""
        name = self._norm_of(value)
        if name is None:
            return at, scope, value
        scope += "_ln"
        return self._norm(name, at, scope), scope, self._heard(f"{name}.hook_out")

    def _norm(self, name: str, reads: int, scope: str | None) -> int:
        truth, path = self.trace.truth(f"{name}.hook_out"), f"{self.trace.prefix}.{name}"
        x = self._heard(f"{name}.hook_in")
        try:
            kind = norm_kind(self.children[name], default_eps(self.model), x.shape[-1], x.dtype, x.device)
            step = Norm(path, truth, kind)
        except UnsupportedArchitectureError as error:
            step = Norm(path, truth, refused=f"{path}: {error}")
        return self.chain.add(step, reads, scope, truth)

    def _step(self, operation: Operation, reads: int, scope: str, hook: str) -> int:
        return self.chain.add(operation, reads, scope, self.trace.truth(hook))

    def _beside(self, name: str) -> tuple[str, Tensor] | None:
        """What another branch of the block that mixes positions writes, under its hook's whole name."""
        hook, value = self.trace.first(f"{name}.out_proj.hook_out", f"{name}.hook_out")
        if value is None or value.shape != self.stream.shape or not _mixes(self.children[name]):
            return None
        return f"{self.trace.prefix}.{hook}", value

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
