"""A dense, slow reference for whole blocks, and the tiny models that it is used on.

Nothing here is shared with the package: every v_ij is materialised, [batch query key d_model], from the activations of
the Hugging Face model itself, and the feed-forward's integrated gradients are numeric integrals of Jacobian-vector
products of the model's own MLP module.
"""

import copy
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from tl_norms import MissingExtraError, demo

try:  # TransformerLens 3 and 4
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
except ImportError:
    build_bridge_from_module = None
try:  # TransformerLens 2 and 3; 4 raises an ImportError
    from transformer_lens import HookedTransformer, HookedTransformerConfig
except ImportError:
    HookedTransformer = None

VOCAB = 60
SIZES = dict(
    num_hidden_layers=2, num_attention_heads=4, hidden_size=24, intermediate_size=40, vocab_size=VOCAB,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
LAYOUTS = {
    "bert": lambda **options: transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, **options)),
    "gpt2": lambda **options: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=2,
            n_head=4,
            n_embd=24,
            n_inner=40,
            n_positions=300,
            vocab_size=VOCAB,
            bos_token_id=1,
            eos_token_id=2,
            **options,
        )  # fmt: skip
    ),
    "llama": lambda **options: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, attention_bias=True, mlp_bias=True, **options)
    ),
}


def jitter(model: nn.Module, size: float = 0.15) -> nn.Module:
    """Move every parameter off its initial value: biases that are zero hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model.eval()


def tiny(layout: str, dtype: torch.dtype = torch.float64, **options) -> nn.Module:
    """A two-layer Hugging Face model with random weights and eager attention."""
    torch.manual_seed(0)
    model = jitter(LAYOUTS[layout](**options).to(dtype))
    model.set_attn_implementation("eager")
    return model


def tokens(n: int = 6, batch: int = 2) -> Tensor:
    return torch.randint(5, VOCAB, (batch, n), generator=torch.Generator().manual_seed(1))


def bridged(model: nn.Module):
    """A TransformerBridge around a copy, so that the reference's model stays as it is."""
    model = copy.deepcopy(model)
    name = type(model).__name__
    model.config.architectures = [name]
    return build_bridge_from_module(model, name, hf_config=model.config)


def cached(model, *args, **options):
    with torch.no_grad():
        return model.run_with_cache(*args, **options)[1]


@lru_cache
def minilm_folder() -> Path | None:
    """The folder of MiniLM, if the package that carries it is installed."""
    try:
        return demo.bert_folder()
    except MissingExtraError:
        return None


def hooked(**options):
    """A tiny HookedTransformer of TransformerLens 2 or 3."""
    config = dict(
        n_layers=2, d_model=24, n_ctx=300, d_head=6, d_mlp=40, d_vocab=VOCAB, act_fn="gelu", dtype=torch.float64,
        seed=0, normalization_type="LN", device="cpu",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TransformerLens 3 announces the end of this class
        return jitter(HookedTransformer(HookedTransformerConfig(**{**config, **options})))


# ------------------------------------------------------------------------------------------------ blocks, dense


@dataclass(frozen=True)
class DenseBlock:
    """One block as the model ran it."""

    stream: Tensor  # [b q d]
    pattern: Tensor  # [b h q k]
    values: Tensor  # [b k h d_head]
    w_o: Tensor  # [h d_head d]
    b_o: Tensor
    norm: nn.Module  # post-LN: behind the attention block; pre-LN: in front of the feed-forward
    last_norm: nn.Module | None
    mlp: nn.Module
    biases: tuple[str, ...]  # of the MLP's input side, by parameter name
    output: Tensor  # the block's output


class _BertMLP(nn.Module):
    """BERT keeps the halves of its feed-forward, and the residual behind it, in two modules."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.intermediate, self.dense = layer.intermediate, layer.output.dense

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.intermediate(x))


def dense_blocks(model: nn.Module, ids: Tensor, **inputs) -> list[DenseBlock]:
    """All blocks of a Hugging Face model, from hooks on its own modules."""
    kind = model.config.model_type
    base = getattr(model, model.base_model_prefix, model)
    layers = {"bert": lambda: base.encoder.layer, "gpt2": lambda: base.h, "llama": lambda: base.layers}[kind]()
    seen: dict[tuple[int, str], Tensor] = {}
    handles = []

    def keep(number: int, name: str):
        def hook(module, args, output):
            seen[number, name] = output[0] if isinstance(output, tuple) else output
            if name == "layer":
                seen[number, "stream"] = args[0]

        return hook

    for number, layer in enumerate(layers):
        value = {"bert": "attention.self.value", "gpt2": "attn.c_attn", "llama": "self_attn.v_proj"}[kind]
        handles.append(layer.get_submodule(value).register_forward_hook(keep(number, "value")))
        handles.append(layer.register_forward_hook(keep(number, "layer")))
    with torch.no_grad():
        patterns = model(ids, output_attentions=True, **inputs).attentions
    for handle in handles:
        handle.remove()

    blocks = []
    for number, layer in enumerate(layers):
        pattern, value, stream = patterns[number], seen[number, "value"], seen[number, "stream"]
        if kind == "bert":
            out, mlp, biases = layer.attention.output.dense, _BertMLP(layer), ("intermediate.dense.bias",)
            norms = (layer.attention.output.LayerNorm, layer.output.LayerNorm)
        elif kind == "gpt2":
            value = value[..., -stream.shape[-1] :]
            out, mlp, biases, norms = layer.attn.c_proj, layer.mlp, ("c_fc.bias",), (layer.ln_2, None)
        else:
            out, mlp, biases = layer.self_attn.o_proj, layer.mlp, ("gate_proj.bias", "up_proj.bias")
            norms = (layer.post_attention_layernorm, None)
        n_heads = pattern.shape[1]
        d_head = stream.shape[-1] // n_heads
        value = value.unflatten(-1, (-1, d_head))
        value = value.repeat_interleave(n_heads // value.shape[2], dim=2)
        w_o = out.weight if kind == "gpt2" else out.weight.T
        blocks.append(
            DenseBlock(
                stream,
                pattern,
                value,
                w_o.detach().unflatten(0, (n_heads, d_head)),
                out.bias.detach(),
                *norms,
                mlp,
                biases,
                seen[number, "layer"],
            )  # fmt: skip
        )
    return blocks


def dense_hooked_blocks(model, cache) -> list[DenseBlock]:
    """All blocks of a HookedTransformer, from its cache."""
    return [
        DenseBlock(
            cache["resid_pre", n],
            cache["pattern", n],
            cache["v", n],
            block.attn.W_O.detach(),
            block.attn.b_O.detach(),
            block.ln2,
            None,
            block.mlp,
            () if model.cfg.gated_mlp else ("b_in",),
            cache["resid_post", n],
        )  # fmt: skip
        for n, block in enumerate(model.blocks)
    ]


Parts = tuple[Tensor, Tensor]  # v_ij [b q k d], rest [b q d]


def dense_scopes(block: DenseBlock, bias: str) -> dict[str, Parts]:
    """Every scope of a post-LN or pre-LN block, step by step."""
    eye = torch.eye(block.stream.shape[1], dtype=block.stream.dtype)
    sent = torch.einsum("bkhe,hed->bkhd", block.values, block.w_o)
    vectors = torch.einsum("bhqk,bkhd->bqkd", block.pattern, sent)
    rest = block.b_o.expand_as(block.stream)
    scopes = {"attn": (vectors, rest)}
    middle = vectors + torch.einsum("qk,bqd->bqkd", eye, block.stream), rest
    scopes["attn_res"] = middle
    inner = scopes["attn_res_ln"] = dense_norm(block.norm, *middle)
    hidden = scopes["attn_res_ln_ff"] = dense_feed_forward(block.mlp, block.biases, *inner, bias)
    bypassed = middle if block.last_norm is None else inner
    out = scopes["attn_res_ln_ff_res"] = (hidden[0] + bypassed[0], hidden[1] + bypassed[1])
    if block.last_norm is not None:
        scopes["attn_res_ln_ff_res_ln"] = dense_norm(block.last_norm, *out)
    return scopes


def dense_norm(norm: nn.Module, vectors: Tensor, rest: Tensor) -> Parts:
    """The distributive law of a layer norm, with the scale of the full vector."""
    gain = norm.weight if hasattr(norm, "weight") else norm.w
    beta = getattr(norm, "bias", getattr(norm, "b", None))
    eps = next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))
    centers = beta is not None
    full = vectors.sum(2) + rest
    variance = full.var(-1, unbiased=False) if centers else full.pow(2).mean(-1)
    scale = torch.sqrt(variance + eps)[..., None]

    def apply(x: Tensor, scale: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True) if centers else x) / scale * gain.detach()

    rest = apply(rest, scale)
    return apply(vectors, scale[:, :, None]), rest + beta.detach() if centers else rest


def dense_feed_forward(
    mlp: nn.Module, biases: tuple[str, ...], vectors: Tensor, rest: Tensor, convention: str, points: int = 48
) -> Parts:
    """int_0^1 of the Jacobian-vector product of the MLP along the path, one product per source and point.

    "player": input and biases go from zero to where they are, together. "fixed": biases and rest stand still.
    """
    parameters = dict(mlp.named_parameters())
    fixed = tuple(parameters[name].detach() for name in biases)
    moved = vectors.sum(2)

    def run(x: Tensor, *bias: Tensor) -> Tensor:
        return torch.func.functional_call(mlp, dict(zip(biases, bias, strict=True)), (x,))

    def product(x: Tensor, tangent: Tensor, at: tuple[Tensor, ...], bias_tangent: tuple[Tensor, ...]) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.func itself uses torch.jit.script
            return torch.func.jvp(run, (x.contiguous(), *at), (tangent, *bias_tangent))[1]

    still = tuple(torch.zeros_like(b) for b in fixed)
    shares = torch.zeros_like(vectors)
    rest_share = run(torch.zeros_like(rest), *still) if convention == "player" else run(rest, *fixed)
    nodes, weights = np.polynomial.legendre.leggauss(points)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        if convention == "player":
            at, point = tuple(node * b for b in fixed), node * (moved + rest)
            rest_share = rest_share + weight * product(point, rest, at, fixed)
        else:
            at, point = fixed, rest + node * moved
        points_of_sources = point[:, :, None].expand_as(vectors)
        shares = shares + weight * product(points_of_sources, vectors, at, still)
    return shares.detach(), rest_share.detach()
