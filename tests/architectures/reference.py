"""A dense reference for one layer, from the Hugging Face module alone: its own weights, its own forward.

attention     pattern and values are overheard in transformers' own attention function; the value vectors of every
              pair go through the module's output projection; what stands between (gates, inner norms) is the
              elementwise ratio of the projection's input to the mixed values
norms         with their statistics held, an affine map per position: the ratio of output to (centred) input
feed-forward  integral over t of the module's Jacobian at t times its input, applied to every source; the biases in
              front of an activation grow with t, the router keeps what it said
"""

import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp


@dataclass(frozen=True)
class Case:
    """Where the parts of a layer are, as dotted paths inside it.

    Attributes:
        spec: a name in the zoo
        layers: path of the list of layers; layer: which one
        layout: "sequential" | "parallel"
        post_norm: the feed-forward reads and the residual keeps the normed sum (BERT)
        ln1: the norm in front; ln2: in front of the feed-forward (or behind the sum, post_norm)
        cross, cross_output: the cross-attention of a decoder and its output projection; cross_heads: as `heads`
        cross_ln: the norm on the stream in front of it (post_norm); behind_cross: between it and its sum
        behind_attention, behind_ff: norms between a branch and its sum; ln3: the norm behind the last sum (post_norm)
        base_is_normed: the first residual is taken behind ln1
        factor: what branches are multiplied with; ff_bias_out: names of biases that no activation follows
        routers: submodules of the feed-forward whose output is held
        ff: the feed-forward; modules called one after the other are joined by "+"
        inner_norms: norms inside the feed-forward, whose statistics are held
        activation: path and plain function of an activation that torch.func cannot differentiate as it is
        centred: the norms subtract the mean although they are no nn.LayerNorm
        float32: transformers computes the softmax in float32, TransformerLens in the model's dtype
        nodes: Gauss-Legendre nodes on the path; kinks: where on it something has no derivative
        heads: finds pattern and values where the installed transformers' model does not call `eager_attention_forward`
        scale: parameters (by part of their name) multiplied in both models, to reach clamps
    """

    spec: str
    layers: str
    attention: str
    output: str
    ff: str
    layout: str = "sequential"
    ln1: str | None = None
    ln2: str | None = None
    ln3: str | None = None
    post_norm: bool = False
    cross: str | None = None
    cross_output: str = ""
    cross_heads: Callable[[nn.Module, dict], tuple[Tensor, Tensor]] | None = None
    cross_ln: str | None = None
    behind_cross: str | None = None
    behind_attention: str | None = None
    behind_ff: str | None = None
    base_is_normed: bool = False
    factor: float = 1.0
    routers: tuple[str, ...] = ()
    ff_bias_out: tuple[str, ...] = ()
    inner_norms: tuple[str, ...] = ()
    centred: bool = False
    activation: tuple[str, Callable] | None = None
    float32: bool = False
    layer: int = 1
    nodes: int = 24
    heads: Callable[[nn.Module, dict], tuple[Tensor, Tensor]] | None = None
    kinks: Callable[[nn.Module, Tensor], list[float]] | None = None
    scale: tuple[str, float] | None = None


@contextmanager
def overheard(attention: nn.Module):
    """Records (pattern, values) of transformers' eager attention function while the attention runs, if it calls it."""
    module, found = sys.modules[type(attention).__module__], []
    original = getattr(module, "eager_attention_forward", None)
    if original is None:
        yield found
        return

    def recording(this, query, key, value, *args, **options):
        output, weights = original(this, query, key, value, *args, **options)
        if this is attention:
            found.append((weights, value))
        return output, weights

    module.eager_attention_forward = recording
    try:
        yield found
    finally:
        module.eager_attention_forward = original


def record(model: nn.Module, layer: nn.Module, tokens: Tensor, extra: dict) -> dict[str, tuple]:
    """Inputs and outputs of every submodule of a layer, by path; "" is the layer."""
    seen: dict[str, tuple] = {}

    def keep(name):
        def hook(module, args, options, output):
            given = [a for a in (*args, *options.values()) if isinstance(a, Tensor)]
            seen[name] = (given[0].detach().clone() if given else None, _detached(output))

        return hook

    handles = [m.register_forward_hook(keep(n), with_kwargs=True) for n, m in layer.named_modules()]
    with torch.no_grad():
        model(tokens, **extra)
    for handle in handles:
        handle.remove()
    return seen


def _detached(output):
    if isinstance(output, tuple):
        return tuple(_detached(part) for part in output)
    return output.detach().clone() if isinstance(output, Tensor) else output


def dense(case: Case, model: nn.Module, tokens: Tensor, extra: dict) -> dict[str, Tensor]:
    """scope -> the vectors v_ij, [batch query key d_model], of one layer."""
    layer = model.get_submodule(case.layers)[case.layer]
    attention = layer.get_submodule(case.attention)
    heads = _heads(attention, case.heads, model, layer, tokens, extra)
    crossed = None
    if case.cross is not None:
        crossed = _heads(layer.get_submodule(case.cross), case.cross_heads, model, layer, tokens, extra)
    return _Chain(case, layer, record(model, layer, tokens, extra)).scopes(*heads, crossed)


def _heads(attention, reading, model, layer, tokens, extra) -> tuple[Tensor, Tensor]:
    """Pattern [batch head query key] and values [batch head key d_head] of an attention.

    What is overheard comes first: one model after the other is rewritten to call `eager_attention_forward`.
    """
    with overheard(attention) as found:
        seen = record(model, layer, tokens, extra)
    if found:
        pattern, values = found[-1]
        values = values.repeat_interleave(pattern.shape[1] // values.shape[1], dim=1)
    elif reading is not None:
        pattern, values = reading(attention, seen)
    else:
        raise LookupError(f"{type(attention).__name__} calls no eager_attention_forward: its case needs `heads`")
    return pattern.double(), values.double()


class _Chain:
    def __init__(self, case: Case, layer: nn.Module, seen: dict[str, tuple]):
        self.case, self.layer, self.seen = case, layer, seen
        self.x = seen[""][0]
        self.eye = torch.eye(self.x.shape[1], dtype=self.x.dtype)

    def scopes(
        self, pattern: Tensor, values: Tensor, crossed: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        case, made = self.case, {}
        v, name = self.attend(pattern, values, case.output), "attn"
        made[name] = v
        stream = self.diagonal(self.x)
        if case.layout == "parallel":
            # the norm, if any, in front of the feed-forward acts on the stream alone
            into = self.diagonal(self.x) if case.ln2 is None else self.norm(case.ln2, self.diagonal(self.x))
            made["attn_ff"] = v + self.feed_forward(into)
            made["attn_ff_res"] = stream + case.factor * made["attn_ff"]
            return made
        if case.behind_attention:
            v, name = self.norm(case.behind_attention, v), name + "_ln"
            made[name] = v
        base = self.norm(case.ln1, stream) if case.base_is_normed else stream
        v, name = base + case.factor * v, name + "_res"
        made[name] = kept = v
        if crossed is not None:
            if case.cross_ln:
                kept, name = self.norm(case.cross_ln, v), name + "_ln"
                made[name] = kept
            far, name = self.attend(*crossed, case.cross_output), name + "_cross"
            made[name] = far = torch.cat([torch.zeros_like(kept), far], dim=2)
            if case.behind_cross:
                far, name = self.norm(case.behind_cross, far), name + "_ln"
                made[name] = far
            v, name = far.clone(), name + "_res"
            v[:, :, : kept.shape[2]] += kept
            made[name] = kept = v
        if case.ln2:
            v, name = self.norm(case.ln2, v), name + "_ln"
            made[name] = v
            kept = v if case.post_norm else kept
            if case.base_is_normed:
                kept = v
        v, name = self.feed_forward(v), name + "_ff"
        made[name] = v
        if case.behind_ff:
            v, name = self.norm(case.behind_ff, v), name + "_ln"
            made[name] = v
        v, name = kept + case.factor * v, name + "_res"
        made[name] = v
        if case.ln3:
            made[name + "_ln"] = self.norm(case.ln3, v)
        return made

    def diagonal(self, x: Tensor) -> Tensor:
        return torch.einsum("ij,bid->bijd", self.eye, x)

    def attend(self, pattern: Tensor, values: Tensor, path: str) -> Tensor:
        """Every pair's mixed values through the output projection."""
        output = self.layer.get_submodule(path)
        mixed = torch.einsum("bhij,bhjd->bijhd", pattern, values).flatten(3)
        entered = self.seen[path][0].reshape(mixed.shape[0], mixed.shape[1], -1).to(mixed)
        mixed = mixed * (entered / mixed.sum(2))[:, :, None]
        with torch.no_grad():
            zero = output(torch.zeros_like(mixed))
            return output(mixed) - zero

    def norm(self, path: str, v: Tensor) -> Tensor:
        """A norm with its statistics held: the ratio of its output to its input, both without constants."""
        module, (x, y) = self.layer.get_submodule(path), self.seen[path]
        x, y = x.reshape(self.x.shape).to(v), y.reshape(self.x.shape).to(v)
        if isinstance(module, nn.LayerNorm) or self.case.centred:
            x, v = x - x.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
            bias = getattr(module, "bias", None)
            y = y if bias is None else y - bias.detach()
        return v * (y / x)[:, :, None]

    def feed_forward(self, v: Tensor) -> Tensor:
        paths = self.case.ff.split("+")
        parts = [self.layer.get_submodule(path) for path in paths]
        module = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
        full = self.seen[paths[0]][0].reshape(self.x.shape).to(v)
        biases = {n: p.detach() for n, p in module.named_parameters() if "bias" in n and n not in self.case.ff_bias_out}
        biases = {n: b for n, b in biases.items() if not any(n.startswith(r + ".") for r in self.case.routers)}
        edges = [0.0, *(self.case.kinks(module, full) if self.case.kinks else []), 1.0]
        total = torch.zeros_like(v)
        with held(module, self.case, self.seen), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, when its derivatives are first loaded
            for left, right in zip(edges[:-1], edges[1:], strict=True):
                for t, weight in zip(*_legendre(self.case.nodes), strict=True):
                    t, weight = left + (right - left) * t, (right - left) * weight

                    def run(x, t=t):
                        y = functional_call(module, {n: t * b for n, b in biases.items()}, (x,))
                        return (y[0] if isinstance(y, tuple) else y).reshape(full.shape)

                    for j in range(v.shape[2]):
                        total[:, :, j] += weight * jvp(run, (t * full,), (v[:, :, j].contiguous(),))[1].detach()
        return total


@contextmanager
def held(module: nn.Module, case: Case, seen: dict[str, tuple]):
    """Routers say again what they said in the real run; inner norms multiply with what they multiplied with."""
    routers = [(module.get_submodule(name), seen[f"{case.ff}.{name}"][1]) for name in case.routers]
    norms = [(module.get_submodule(name), seen[f"{case.ff}.{name}"]) for name in case.inner_norms]
    try:
        for router, said in routers:
            router.forward = lambda *args, said=said, **options: said
        for norm, (x, y) in norms:
            norm.forward = lambda z, x=x, y=y: z * (y / x).nan_to_num(0)  # 0/0 at neurons that are off
        if case.activation:
            plain = module.get_submodule(case.activation[0])
            plain.forward = case.activation[1]
            norms.append((plain, ()))
        yield
    finally:
        for part, _ in routers + norms:
            del part.forward


def _legendre(points: int) -> tuple[list[float], list[float]]:
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return ((nodes + 1) / 2).tolist(), (weights / 2).tolist()


def mixing_ratio(v: Tensor) -> Tensor:
    own = v.diagonal(dim1=1, dim2=2).transpose(1, 2)
    off = (v.sum(2) - own).norm(dim=-1)
    return off / (off + own.norm(dim=-1))
