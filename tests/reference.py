"""A slow, dense account of attention-block norms to compare with; it shares nothing with the package.

Hugging Face's own model gives everything: its weights, and the `hidden_states` and `attentions` of its own forward
pass. The vectors v_ij are then written out one by one, in float64, as [batch, query, key, d_model].
TransformerLens plays no part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Layer:
    """One layer, taken apart. `vectors` and `rest` are by scope."""

    pattern: Tensor  # [batch head query key]
    values: Tensor  # f(x), [batch head key d_model]
    vectors: dict[str, Tensor]  # [batch query key d_model]
    rest: dict[str, Tensor]  # [batch query d_model]
    output: Tensor  # what Hugging Face's block gives when it goes on from our last scope

    @property
    def value_norms(self) -> Tensor:
        return length(self.values)

    @property
    def weighted_value_norms(self) -> Tensor:
        n_batch, n_heads, n, _ = self.pattern.shape
        out = torch.zeros(n_batch, n_heads, n, n, dtype=torch.float64)
        for h in range(n_heads):
            for i in range(n):
                for j in range(n):
                    out[:, h, i, j] = length(self.pattern[:, h, i, j, None] * self.values[:, h, j])
        return out

    def norms(self, scope: str) -> Tensor:
        return length(self.vectors[scope])

    def total(self, scope: str) -> Tensor:
        return self.vectors[scope].sum(2) + self.rest[scope]

    def mixing_ratio(self, scope: str) -> Tensor:
        vectors = self.vectors[scope]
        n = vectors.shape[1]
        rows = []
        for i in range(n):
            others = [j for j in range(n) if j != i]
            context, own = length(vectors[:, i, others].sum(1)), length(vectors[:, i, i])
            rows.append(context / (context + own))
        return torch.stack(rows, 1)

    @property
    def attention(self) -> Tensor:
        return self.pattern.mean(1)

    @property
    def attention_residual(self) -> Tensor:
        return 0.5 * self.attention + 0.5 * torch.eye(self.pattern.shape[-1], dtype=torch.float64)

    def attention_mixing_ratio(self, residual: bool) -> Tensor:
        """The weights of the others; a row sums to one (to float32 only where Hugging Face's softmax is in float32)."""
        weights = self.attention_residual if residual else self.attention
        n = weights.shape[1]
        return torch.stack([sum(weights[:, i, j] for j in range(n) if j != i) for i in range(n)], 1)


@dataclass
class _Parts:
    """What Hugging Face calls the parts of a block."""

    norm_before: nn.Module | None
    value: tuple[Tensor, Tensor]  # [kv_heads * d_head, d_model] and its bias
    output: tuple[Tensor, Tensor]  # [d_model, heads * d_head] and its bias
    norm_after: nn.Module  # behind the residual: BERT's own, or the one in front of the feed-forward
    gain: Tensor
    beta: Tensor
    eps: float
    centered: bool
    proceed: object  # from the scopes' totals to the block's output


def analyse(model: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> list[Layer]:
    """Every layer of a Hugging Face BERT, RoBERTa, GPT-2, Llama, Mistral, Qwen 2 or Gemma."""
    with torch.no_grad():
        run = model(tokens, attention_mask=mask, output_attentions=True, output_hidden_states=True)
        pairs = zip(_blocks(model), run.hidden_states, run.attentions, strict=False)
        return [_layer(parts, stream, pattern.double()) for parts, stream, pattern in pairs]


def streams(model: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    """The inputs of all blocks, as Hugging Face reports them (the last entry of a decoder is behind its last norm)."""
    with torch.no_grad():
        return model(tokens, attention_mask=mask, output_hidden_states=True).hidden_states


def _layer(parts: _Parts, stream: Tensor, pattern: Tensor) -> Layer:
    # Hugging Face's RMSNorm rounds to float32 inside: using its own module puts our values where the model's are
    normed = stream if parts.norm_before is None else parts.norm_before(stream)
    x, normed = stream.double(), normed.double()
    n_batch, n_heads, n, _ = pattern.shape
    d_model = x.shape[-1]
    (w_v, b_v), (w_o, b_o) = parts.value, parts.output
    d_head = w_o.shape[1] // n_heads
    group = n_heads // (w_v.shape[0] // d_head)

    values = torch.zeros(n_batch, n_heads, n, d_model, dtype=torch.float64)
    for h in range(n_heads):
        mine = slice((h // group) * d_head, (h // group + 1) * d_head)
        heads = torch.einsum("bkd,ed->bke", normed, w_v[mine]) + b_v[mine]
        values[:, h] = torch.einsum("bke,de->bkd", heads, w_o[:, h * d_head : (h + 1) * d_head])

    attn = torch.zeros(n_batch, n, n, d_model, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            for h in range(n_heads):
                attn[:, i, j] += pattern[:, h, i, j, None] * values[:, h, j]
    attn_rest = b_o.expand(n_batch, n, d_model).clone()

    res = attn.clone()
    for i in range(n):
        res[:, i, i] += x[:, i]
    full = res.sum(2) + attn_rest

    ln, ln_rest = torch.zeros_like(res), torch.zeros_like(attn_rest)
    for i in range(n):
        spread = full[:, i] - full[:, i].mean(-1, keepdim=True) if parts.centered else full[:, i]
        scale = (spread.pow(2).mean(-1, keepdim=True) + parts.eps).sqrt()
        for j in range(n):
            ln[:, i, j] = _centre(res[:, i, j], parts.centered) / scale * parts.gain
        ln_rest[:, i] = _centre(attn_rest[:, i], parts.centered) / scale * parts.gain + parts.beta

    return Layer(
        pattern=pattern,
        values=values,
        vectors={"attn": attn, "attn_res": res, "attn_res_ln": ln},
        rest={"attn": attn_rest, "attn_res": attn_rest, "attn_res_ln": ln_rest},
        output=parts.proceed(full.to(stream.dtype), (ln.sum(2) + ln_rest).to(stream.dtype)).double(),
    )


def _centre(v: Tensor, centered: bool) -> Tensor:
    return v - v.mean(-1, keepdim=True) if centered else v


def length(v: Tensor) -> Tensor:
    return v.pow(2).sum(-1).sqrt()


def _blocks(model: nn.Module) -> list[_Parts]:
    kind = type(model).__name__
    if kind.startswith(("Bert", "Roberta")):
        return [_bert(layer) for layer in model.base_model.encoder.layer]
    if kind.startswith("GPT2"):
        return [_gpt2(layer) for layer in model.transformer.h]
    return [_llama(layer, kind.startswith("Gemma")) for layer in model.model.layers]


def _linear(module: nn.Linear) -> tuple[Tensor, Tensor]:
    weight = module.weight.double()
    return weight, torch.zeros(len(weight), dtype=torch.float64) if module.bias is None else module.bias.double()


def _bert(layer: nn.Module) -> _Parts:
    norm = layer.attention.output.LayerNorm
    return _Parts(
        norm_before=None,
        value=_linear(layer.attention.self.value),
        output=_linear(layer.attention.output.dense),
        norm_after=norm,
        gain=norm.weight.double(),
        beta=norm.bias.double(),
        eps=norm.eps,
        centered=True,
        proceed=lambda mid, normed: layer.output(layer.intermediate(normed), normed),
    )


def _gpt2(layer: nn.Module) -> _Parts:
    d = layer.ln_1.weight.shape[0]
    attn, norm = layer.attn, layer.ln_2
    return _Parts(
        norm_before=layer.ln_1,
        value=(attn.c_attn.weight.double()[:, 2 * d :].T, attn.c_attn.bias.double()[2 * d :]),
        output=(attn.c_proj.weight.double().T, attn.c_proj.bias.double()),
        norm_after=norm,
        gain=norm.weight.double(),
        beta=norm.bias.double(),
        eps=norm.eps,
        centered=True,
        proceed=lambda mid, normed: mid + layer.mlp(normed),
    )


def _llama(layer: nn.Module, gemma: bool) -> _Parts:
    norm = layer.post_attention_layernorm
    gain = norm.weight.double() + (1.0 if gemma else 0.0)
    return _Parts(
        norm_before=layer.input_layernorm,
        value=_linear(layer.self_attn.v_proj),
        output=_linear(layer.self_attn.o_proj),
        norm_after=norm,
        gain=gain,
        beta=torch.zeros_like(gain),
        eps=norm.eps if gemma else norm.variance_epsilon,
        centered=False,
        proceed=lambda mid, normed: mid + layer.mlp(normed),
    )
