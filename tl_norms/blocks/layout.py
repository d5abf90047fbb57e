"""The layout of a bridge's blocks, read off a short run of the model itself.

Hook names and configuration flags of the bridge do not say where a norm stands or what is added to what (BERT's
`hook_resid_mid` is the sum behind the feed-forward). The numbers do: a norm whose input equals x + attn is a post-norm,
one whose input equals x a pre-norm. So five tokens are run once per model, and each block's chain is found by asking
which tensors are sums of which. The result is names and numbers only; weights are read afresh for every cache.
"""

import torch
from torch import Tensor, nn

from ..errors import UnsupportedArchitectureError
from .attention_layout import read_attention
from .modules import float_attributes, unwrap
from .short_run import telling_run
from .structure import Add, Block, Chain, CrossAttention, FeedForward, Norm, Truth
from .trace import Trace, combination, same

_FEED_FORWARDS = ("mlp", "moe", "shared_mlp", "feed_forward")


@torch.no_grad()
def read_layout(model: nn.Module, stack: str) -> tuple[Block | None, ...]:
    """The blocks of one stack of a bridge, None for a layer without attention."""
    modules = list(getattr(model, stack))
    tensors = telling_run(model, stack)
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
        self.stream = stream
        at = self._step(
            read_attention(self.children[attention], self.trace, attention), 0, "attn", f"{attention}.o.hook_out"
        )
        at, scope, branch = self._norm_behind(at, "attn", branch)
        base = (0, stream)
        if "cross_attn" in self.children:
            at, scope, branch, base = self._cross_attention(at, scope, branch)
        self._feed_forward(at, scope, branch, base)
        return Block(self.layer, f"{self.trace.prefix}.hook_in", tuple(self.chain.steps))

    def _cross_attention(self, at: int, scope: str, branch: Tensor) -> tuple[int, str, Tensor, tuple[int, Tensor]]:
        """The stream plus attention, and cross-attention: its point, scope and value, and the stream it is added to.

        A norm in front of cross-attention acts on queries only, which the pattern holds: it is a step where the stream
        itself goes on from it (post-norm), and none where it stands on the side (pre-norm).
        """
        name = "cross_attn"
        into_name, into = self.trace.first(f"{name}.q.hook_in", f"{name}.hook_in")
        crossed = self.trace(f"{name}.o.hook_out")
        if into is None or crossed is None:
            raise self._refused("its cross-attention does not expose its input and output")
        in_front = self._norm_in_front(into)
        read = into if in_front is None else self._read_by(in_front)
        fitted = combination(read, [self.stream, branch])
        if fitted is None:
            raise self._refused("what its cross-attention reads is not its input plus its self-attention")
        scope += "_res"
        add = Add(0, self._snapped(fitted[1]), self._snapped(fitted[0]))
        base = self._step(add, at, scope, into_name if in_front is None else f"{in_front}.hook_in"), read
        behind = self._norm_of(crossed)
        written = crossed if behind is None else self.trace(f"{behind}.hook_out")
        following, _ = self._entered_feed_forward()
        if following is None or written is None or combination(following, [read, written]) is None:
            if in_front is not None:
                scope += "_ln"
                base = self._norm(in_front, base[0], scope), into
        step = read_attention(self.children[name], self.trace, name, CrossAttention)
        if step.gate is not None or step.inner_norm is not None:
            raise self._refused("its cross-attention has a gate or a norm in front of its output projection")
        scope += "_cross"
        at, scope, crossed = self._norm_behind(self._step(step, 0, scope, f"{name}.o.hook_out"), scope, crossed)
        return at, scope, crossed, base

    def _feed_forward(self, at: int, scope: str, branch: Tensor, base: tuple[int, Tensor]) -> None:
        read, in_front = self._entered_feed_forward()
        if read is None:
            raise self._refused("no feed-forward of it exposes its input")
        names = [n for n in _FEED_FORWARDS if n in self.children]
        if same(read, self.stream) and not same(read, self.stream + branch):
            self._parallel(at, scope, branch, names, in_front)
        else:
            self._sequential(at, scope, branch, base, names, in_front, read)

    def _entered_feed_forward(self) -> tuple[Tensor | None, str | None]:
        """What the feed-forward reads from the stream, in front of its own norm; and that norm."""
        _, into = self._into_feed_forward()
        if into is None:
            return None, None
        in_front = self._norm_in_front(into)
        return (into if in_front is None else self._read_by(in_front)), in_front

    def _into_feed_forward(self) -> tuple[str, Tensor | None]:
        """What enters the feed-forward itself, and its hook."""
        names = [n for n in _FEED_FORWARDS if n in self.children]
        name, into = self.trace.first(
            *(f"{n}{part}" for n in names for part in (".hook_in", ".in.hook_in", ".gate.hook_in"))
        )
        if into is not None and into.numel() == self.stream.numel():
            into = into.reshape(self.stream.shape)
        return name, into

    def _norm_in_front(self, into: Tensor) -> str | None:
        return next((n for n in self.norms if same(self.trace(f"{n}.hook_out"), into)), None)

    def _norm_of(self, value: Tensor) -> str | None:
        return next((n for n in self.norms if same(self.trace(f"{n}.hook_in"), value)), None)

    def _read_by(self, norm: str) -> Tensor:
        read = self.trace(f"{norm}.hook_in")
        assert read is not None
        return read

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

    def _sequential(
        self,
        at: int,
        scope: str,
        branch: Tensor,
        base: tuple[int, Tensor],
        names: list[str],
        in_front: str | None,
        read: Tensor,
    ) -> None:
        """The feed-forward reads the sum of stream and attention, normed in front of it, behind it, or not."""
        into_name, into = self._into_feed_forward()
        assert into is not None
        bases: list[tuple[int | None, Tensor]] = [base]
        pre = self._norm_of(self.stream)
        if pre is not None:  # BLOOM can take the residual behind the norm
            normed = self.trace(f"{pre}.hook_out")
            assert normed is not None
            bases.append((None, normed))
        beside = [found for n in self.children if n not in names and (found := self._beside(n))]
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
        name = self._norm_of(value)
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
