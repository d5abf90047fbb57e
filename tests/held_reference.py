"""The held map of a Hugging Face model, written out plainly in float64, for attributions to be compared with.

Patterns, norm scales and feed-forward coefficients are taken from Hugging Face's own run and held; what is left is an
affine function of the embeddings, which autograd differentiates. Coefficients are integrals by quadrature, not closed
forms. TransformerLens and the package play no part.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Run:
    """What Hugging Face's modules read and wrote in one forward pass."""

    model: nn.Module
    tokens: Tensor
    read: dict[str, Tensor] = field(default_factory=dict)
    wrote: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_hook(self._listener(name)))
        with torch.no_grad():
            out = self.model(self.tokens, output_attentions=True, output_hidden_states=True)
        for handle in handles:
            handle.remove()
        self.patterns = [pattern.double() for pattern in out.attentions]
        self.logits = out.logits.double()

    def _listener(self, name: str):
        def listen(module, arguments, output):
            if arguments and isinstance(arguments[0], Tensor):
                self.read[name] = arguments[0].detach().double()
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor):
                self.wrote[name] = output.detach().double()

        return listen


@dataclass
class Norm:
    """A norm with the scale of what it really read."""

    module: nn.Module
    full: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        centre = isinstance(self.module, nn.LayerNorm)
        eps = self.module.eps if centre else self.module.variance_epsilon
        full = self.full - self.full.mean(-1, keepdim=True) if centre else self.full
        x = x - x.mean(-1, keepdim=True) if centre else x
        x = x / (full.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self.module.weight.double()
        return x + self.module.bias.double() if centre else x


def linear(module: nn.Module, x: Tensor) -> Tensor:
    weight = module.weight.double()
    y = x @ (weight if type(module).__name__ == "Conv1D" else weight.T)
    return y if module.bias is None else y + module.bias.double()


def slopes(g: Callable[[Tensor], Tensor], u: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """int g'(t u) (t w) dt and int g(t u) dt by quadrature; w = None: int g'(t u) dt."""
    nodes, weights = np.polynomial.legendre.leggauss(96)
    first, second = torch.zeros_like(u), torch.zeros_like(u)
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = (float(t) * u).clone().requires_grad_()
        (derivative,) = torch.autograd.grad(g(point).sum(), point)
        first += weight * derivative * (1 if w is None else t * w)
        second += weight * g(point).detach()
    return first, second


@dataclass
class Layer:
    """One block as an affine function of its input; `cut` leaves out one edge, `scale_ffn` scales what it writes."""

    before: Norm | None  # of attention
    value: Callable[[Tensor], Tensor]
    output: nn.Module
    pattern: Tensor
    middle: Callable[[Tensor], Tensor]  # post-norm: the norm behind the first sum
    ffn: Callable[[Tensor], Tensor]  # from what leaves `middle`, pre-norm included
    after: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, edges: Tensor | None = None, ffn: Tensor | None = None, values: Tensor | None = None):
        n_batch, n_heads, n, _ = self.pattern.shape
        if values is None:
            values = self.value(x if self.before is None else self.before(x))
        values = values.unflatten(-1, (-1, self.output_width() // n_heads))
        values = values.repeat_interleave(n_heads // values.shape[2], dim=2)
        pattern = self.pattern if edges is None else self.pattern * edges
        mixed = torch.einsum("bhqk,bkhe->bqhe", pattern, values).flatten(2)
        middle = self.middle(x + linear(self.output, mixed))
        written = self.ffn(middle)
        return self.after(middle + (written if ffn is None else written * ffn[..., None]))

    def output_width(self) -> int:
        weight = self.output.weight
        return weight.shape[0] if type(self.output).__name__ == "Conv1D" else weight.shape[1]


@dataclass
class Held:
    """All blocks and the head: `layers` in order, `head` from the last stream to logits at one position."""

    layers: list[Layer]
    streams: list[Tensor]
    head: Callable[[Tensor], Tensor]

    def value(self, x: Tensor, start: int, target: Callable[[Tensor], Tensor], **options) -> Tensor:
        """The target as a function of the stream entering layer `start`; options by layer, as (layer, value)."""
        for number in range(start, len(self.layers)):
            here = {name: given[1] for name, given in options.items() if given[0] == number}
            x = self.layers[number](x, **here)
        return target(self.head(x))


def held(run: Run) -> Held:
    """The held map of a GPT-2, Llama or BERT kind."""
    kind = type(run.model).__name__
    build = _gpt2 if kind.startswith("GPT2") else _bert if kind.startswith("Bert") else _llama
    return build(run)


def _same(x: Tensor) -> Tensor:
    return x


def _plain(run: Run, name: str, first: nn.Module, second: nn.Module, g, norm: Norm | None, entering: Tensor):
    u = linear(first, entering)
    coefficient, _ = slopes(g, u)
    start = g(torch.zeros_like(u))

    def ffn(x: Tensor) -> Tensor:
        return linear(second, linear(first, x if norm is None else norm(x)) * coefficient + start)

    return ffn


def _gpt2(run: Run) -> Held:
    layers, streams = [], []
    for number, block in enumerate(run.model.transformer.h):
        at = f"transformer.h.{number}"
        x = run.read[f"{at}.ln_1"]
        before = Norm(block.ln_1, x)
        ln_2 = Norm(block.ln_2, run.read[f"{at}.ln_2"])
        ffn = _plain(run, at, block.mlp.c_fc, block.mlp.c_proj, block.mlp.act, ln_2, ln_2(run.read[f"{at}.ln_2"]))
        width = x.shape[-1]

        def value(n: Tensor, c_attn: nn.Module = block.attn.c_attn, width: int = width) -> Tensor:
            return linear(c_attn, n)[..., 2 * width :]

        layers.append(Layer(before, value, block.attn.c_proj, run.patterns[number], _same, ffn, _same))
        streams.append(x)
    last = run.read["transformer.ln_f"]
    norm = Norm(run.model.transformer.ln_f, last)
    return Held(layers, [*streams, last], lambda x: linear(run.model.lm_head, norm(x)))


def _llama(run: Run) -> Held:
    layers, streams = [], []
    for number, block in enumerate(run.model.model.layers):
        at = f"model.layers.{number}"
        x = run.read[f"{at}.input_layernorm"]
        before = Norm(block.input_layernorm, x)
        middle = run.read[f"{at}.post_attention_layernorm"]
        norm, mlp = Norm(block.post_attention_layernorm, middle), block.mlp
        entering = norm(middle)
        u, w = linear(mlp.gate_proj, entering), linear(mlp.up_proj, entering)
        c_gate, c_up = slopes(functional.silu, u, w)

        def ffn(x: Tensor, norm=norm, mlp=mlp, c_gate=c_gate, c_up=c_up) -> Tensor:
            n = norm(x)
            return linear(mlp.down_proj, linear(mlp.gate_proj, n) * c_gate + linear(mlp.up_proj, n) * c_up)

        def value(n: Tensor, v=block.self_attn.v_proj) -> Tensor:
            return linear(v, n)

        layers.append(Layer(before, value, block.self_attn.o_proj, run.patterns[number], _same, ffn, _same))
        streams.append(x)
    last = run.read["model.norm"]
    norm = Norm(run.model.model.norm, last)
    return Held(layers, [*streams, last], lambda x: linear(run.model.lm_head, norm(x)))


def _bert(run: Run) -> Held:
    layers, streams = [], []
    for number, block in enumerate(run.model.bert.encoder.layer):
        at = f"bert.encoder.layer.{number}"
        x = run.read[f"{at}.attention.self.value"]
        first = Norm(block.attention.output.LayerNorm, run.read[f"{at}.attention.output.LayerNorm"])
        second = Norm(block.output.LayerNorm, run.read[f"{at}.output.LayerNorm"])
        entering = first(first.full)
        ffn = _plain(run, at, block.intermediate.dense, block.output.dense, functional.gelu, None, entering)

        def value(n: Tensor, v=block.attention.self.value) -> Tensor:
            return linear(v, n)

        layers.append(Layer(None, value, block.attention.output.dense, run.patterns[number], first, ffn, second))
        streams.append(x)
    head = run.model.cls.predictions
    last = run.read["cls.predictions.transform.dense"]
    u = linear(head.transform.dense, last)
    coefficient, _ = slopes(functional.gelu, u)
    norm = Norm(head.transform.LayerNorm, run.read["cls.predictions.transform.LayerNorm"])
    return Held(
        layers,
        [*streams, last],
        lambda x: linear(head.decoder, norm(linear(head.transform.dense, x) * coefficient)),
    )
