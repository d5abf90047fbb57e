"""The held map of a Hugging Face model with its softmaxes integrated, written out plainly in float64.

Every attention is the integral, over 200 nodes, of the derivative (by autograd) of its true softmax along the path from
zero to the real logits and values. Queries and keys are Hugging Face's own modules; the package plays no part.
"""

from collections.abc import Callable
from dataclasses import dataclass

import held_reference
import numpy as np
import torch
from held_reference import Held, Layer, Run, linear
from torch import Tensor

NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


@dataclass
class IntegratedLayer(Layer):
    """One block as an affine function of its input, which may be given apart for queries, keys and values."""

    query: Callable[[Tensor], Tensor]  # [b n d] -> [b n h e], position included
    key: Callable[[Tensor], Tensor]
    x: Tensor  # the real input
    visible: Tensor

    def __call__(self, x: Tensor, ways=None, logits: Tensor | None = None, edges: Tensor | None = None):
        read = [way if self.before is None else self.before(way) for way in (ways or (x, x, x))]
        real = self.x if self.before is None else self.before(self.x)
        with torch.no_grad():
            q0, k0, v0 = self.query(real), self.key(real), self._values(real)
            scale = q0.shape[-1] ** -0.5
            s0 = torch.einsum("bqhe,bkhe->bhqk", q0, k0) * scale
        s = torch.einsum("bqhe,bkhe->bhqk", self.query(read[0]), k0) + torch.einsum(
            "bqhe,bkhe->bhqk", q0, self.key(read[1])
        )
        s = s * scale / 2 if logits is None else s * scale / 2 * logits
        v = self._values(read[2])
        mixed = 0.0
        for node, weight in zip((NODES + 1) / 2, WEIGHTS / 2, strict=True):
            mixed = mixed + weight * self._derivative(float(node) * s0, float(node) * v0, s, v, edges)
        middle = self.middle(x + linear(self.output, mixed.flatten(2)))
        return self.after(middle + self.ffn(middle))

    def _derivative(self, s0, v0, s, v, edges):
        """Of softmax(s0) v0 in the direction (s, v); `edges` multiplies what values carry."""

        def mixed(s, v):
            return torch.einsum("bhqk,bkhe->bqhe", s.masked_fill(~self.visible, -torch.inf).softmax(-1), v)

        if edges is None:
            return torch.func.jvp(mixed, (s0, v0), (s, v))[1]
        pattern = s0.masked_fill(~self.visible, -torch.inf).softmax(-1)
        by_logits = torch.func.jvp(lambda s: mixed(s, v0), (s0,), (s,))[1]
        return by_logits + torch.einsum("bhqk,bkhe->bqhe", pattern * edges, v)

    def _values(self, n: Tensor) -> Tensor:
        n_heads = self.pattern.shape[1]
        values = self.value(n).unflatten(-1, (-1, self.output_width() // n_heads))
        return values.repeat_interleave(n_heads // values.shape[2], dim=2)


def integrated(run: Run) -> Held:
    """The held map of a GPT-2, Llama or BERT kind."""
    plain = held_reference.held(run)
    layers = [
        _layer(run, number, layer, x)
        for number, (layer, x) in enumerate(zip(plain.layers, plain.streams, strict=False))
    ]
    return Held(layers, plain.streams, plain.head)


def _layer(run: Run, number: int, layer: Layer, x: Tensor) -> IntegratedLayer:
    n_heads, n = layer.pattern.shape[1], x.shape[1]
    width = layer.output_width() // n_heads
    kind, causal = type(run.model).__name__, torch.ones(n, n).tril().bool()
    if kind.startswith("GPT2"):
        c_attn, d = run.model.transformer.h[number].attn.c_attn, x.shape[-1]
        query = _heads(lambda v: linear(c_attn, v)[..., :d], width, n_heads)
        key = _heads(lambda v: linear(c_attn, v)[..., d : 2 * d], width, n_heads)
    elif kind.startswith("Bert"):
        attention, causal = run.model.bert.encoder.layer[number].attention.self, torch.ones(n, n).bool()
        query = _heads(lambda v: linear(attention.query, v), width, n_heads)
        key = _heads(lambda v: linear(attention.key, v), width, n_heads)
    else:
        attention = run.model.model.layers[number].self_attn
        query = _turned(run, _heads(lambda v: linear(attention.q_proj, v), width, n_heads))
        key = _turned(run, _heads(lambda v: linear(attention.k_proj, v), width, n_heads))
    return IntegratedLayer(**vars(layer), query=query, key=key, x=x, visible=causal)


def _heads(project, width: int, n_heads: int):
    def heads(v: Tensor) -> Tensor:
        found = project(v).unflatten(-1, (-1, width))
        return found.repeat_interleave(n_heads // found.shape[2], dim=2)

    return heads


def _turned(run: Run, heads):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    def turned(v: Tensor) -> Tensor:
        found = heads(v)
        cos, sin = run.model.model.rotary_emb(v, torch.arange(v.shape[1])[None])
        return apply_rotary_pos_emb(found, found, cos, sin, unsqueeze_dim=2)[0]

    return turned
