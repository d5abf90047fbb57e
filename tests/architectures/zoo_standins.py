"""Models whose classes are not in transformers: stand-ins with the same module names, and TransformerLens' own.

A stand-in is the layer that the checkpoint's own code describes, in the few lines that a bridge needs: norms, the
projections under their real names, a gated feed-forward. The bridge computes the attention from the projections itself
(for Dream transformers' own attention is kept, unmasked), so only the order of things is ours.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
import transformers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding

from .zoo import D_MLP, D_MODEL, FLOAT32_NORMS, FLOAT64, N_CTX, N_HEADS, N_LAYERS, VOCAB, NotHere, add
from .zoo_dense import GPT2, GROUPED, HEADS8, PLAIN


@dataclass(frozen=True)
class Names:
    """What the parts of a stand-in are called."""

    embed: str = "model.embed_tokens"
    layers: str = "model.layers"
    final: str = "model.norm"
    rotary: str = "model.rotary_emb"
    head: str = "lm_head"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norms_behind: tuple[str, ...] = ()
    attention: str = "self_attn"
    feed_forward: str = "mlp"
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a dotted path, making what is in between."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(name, module)


class _Gated(nn.Module):
    """silu(gate x) * up x, then down."""

    def __init__(self, names: tuple[str, str, str]):
        super().__init__()
        self.names = names
        for name, shape in zip(names, ((D_MODEL, D_MLP), (D_MODEL, D_MLP), (D_MLP, D_MODEL)), strict=True):
            self.add_module(name, nn.Linear(*shape, bias=False))
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(self.act_fn(gate(x)) * up(x))


class _Fused(nn.Module):
    """An attention with one projection for queries, keys and values; the bridge computes with them."""

    def __init__(self, name: str, width: int, output: str, head_dim: int = D_MODEL // N_HEADS):
        super().__init__()
        self.head_dim, self.num_heads = head_dim, N_HEADS
        self.add_module(name, nn.Linear(D_MODEL, width, bias=False))
        self.add_module(output, nn.Linear(D_MODEL, D_MODEL, bias=False))


class _Layer(nn.Module):
    def __init__(self, names: Names, attention: nn.Module):
        super().__init__()
        self.names = names
        for norm in names.norms + names.norms_behind:
            _place(self, norm, LlamaRMSNorm(D_MODEL))
        _place(self, names.attention, attention)
        _place(self, names.feed_forward, _Gated(names.projections))

    def forward(self, hidden_states: Tensor, **options) -> Tensor:
        branches = (self.names.attention, self.names.feed_forward)
        for k, (norm, branch) in enumerate(zip(self.names.norms, branches, strict=True)):
            normed = self.get_submodule(norm)(hidden_states)
            module = self.get_submodule(branch)
            made = module(hidden_states=normed, **options)[0] if k == 0 else module(normed)
            if self.names.norms_behind:
                made = self.get_submodule(self.names.norms_behind[k])(made)
            hidden_states = hidden_states + made
        return hidden_states


class _StandIn(nn.Module):
    """Embedding, layers (several times over for looped models), norm, head."""

    def __init__(self, config: LlamaConfig, names: Names, attention, *, loops: int = 1, causal: bool = True):
        super().__init__()
        self.config, self.names, self.loops, self.causal = config, names, loops, causal
        config._attn_implementation = "eager"
        _place(self, names.embed, nn.Embedding(VOCAB, D_MODEL))
        _place(self, names.layers, nn.ModuleList(_Layer(names, attention(config, k)) for k in range(N_LAYERS)))
        _place(self, names.rotary, LlamaRotaryEmbedding(config))
        _place(self, names.final, LlamaRMSNorm(D_MODEL))
        _place(self, names.head, nn.Linear(D_MODEL, VOCAB, bias=False))

    def forward(self, input_ids: Tensor, **options):
        x = self.get_submodule(self.names.embed)(input_ids)
        n = input_ids.shape[1]
        positions = torch.arange(n)[None]
        mask = torch.zeros(1, 1, n, n, dtype=x.dtype)
        if self.causal:
            mask = mask.masked_fill(torch.ones(n, n).triu(1).bool(), torch.finfo(x.dtype).min)
        for _ in range(self.loops):
            rotary = self.get_submodule(self.names.rotary)(x, positions)
            for layer in self.get_submodule(self.names.layers):
                x = layer(x, attention_mask=mask, position_embeddings=rotary)
            x = self.get_submodule(self.names.final)(x)
        return SimpleNamespace(logits=self.get_submodule(self.names.head)(x))


def _renamed(config: LlamaConfig, layer: int, output: str = "o_proj") -> nn.Module:
    attention = LlamaAttention(config, layer)
    if output != "o_proj":
        attention.add_module(output, attention.o_proj)
        del attention.o_proj
    return attention


def _stand_in(name, names: Names, attention, options=GROUPED, *, tolerance=FLOAT32_NORMS, **flags) -> None:
    add(name, lambda: _StandIn(LlamaConfig(**options), names, attention, **flags), note="stand-in", tolerance=tolerance)


_stand_in(
    "InternLM2ForCausalLM",
    Names(
        embed="model.tok_embeddings", head="output", norms=("attention_norm", "ffn_norm"), attention="attention",
        feed_forward="feed_forward", projections=("w1", "w3", "w2"),
    ),
    lambda config, layer: _Fused("wqkv", 2 * D_MODEL, "wo"),
)  # fmt: skip
_stand_in(
    "ExaoneForCausalLM",
    Names(
        embed="transformer.wte", layers="transformer.h", final="transformer.ln_f", rotary="transformer.rotary",
        norms=("ln_1", "ln_2"), attention="attn.attention", projections=("c_fc_0", "c_fc_1", "c_proj"),
    ),
    lambda config, layer: _renamed(config, layer, "out_proj"),
)  # fmt: skip
for baichuan in ("BaichuanForCausalLM", "BaiChuanForCausalLM"):
    _stand_in(baichuan, Names(), lambda config, layer: _Fused("W_pack", 3 * D_MODEL, "o_proj"), PLAIN)
_stand_in(
    "OuroForCausalLM", Names(norms_behind=("input_layernorm_2", "post_attention_layernorm_2")), _renamed, loops=3
)  # fmt: skip
_stand_in("DreamModel", Names(), _renamed, causal=False)
_stand_in(
    "QwenForCausalLM",
    Names(
        embed="transformer.wte", layers="transformer.h", final="transformer.ln_f", rotary="transformer.rotary",
        norms=("ln_1", "ln_2"), attention="attn", projections=("w1", "w2", "c_proj"),
    ),
    lambda config, layer: _Fused("c_attn", 3 * D_MODEL, "c_proj"), PLAIN, tolerance=FLOAT64,
)  # fmt: skip
for copy in ("NanoGPTForCausalLM", "GPT2LMHeadCustomModel"):
    add(
        copy, lambda: GPT2LMHeadModel(GPT2Config(**GPT2)), note="stand-in: transformers' GPT-2, same module names",
        refused="GPT2Block",
    )  # fmt: skip


def _native(**options):
    def build() -> nn.Module:
        try:
            from transformer_lens.config import TransformerBridgeConfig
            from transformer_lens.model_bridge.sources.native import NativeModel
        except ImportError as error:
            raise NotHere(str(error)) from error
        config = TransformerBridgeConfig(
            n_layers=N_LAYERS, n_heads=N_HEADS, d_model=D_MODEL, d_head=D_MODEL // N_HEADS, d_mlp=D_MLP, n_ctx=N_CTX,
            d_vocab=VOCAB, **options,
        )  # fmt: skip
        return NativeModel(config)

    return build


def _boot_native(model: nn.Module):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    return build_bridge_from_module(model, "TransformerLensNative", tl_config=model.cfg)


add("TransformerLensNative", _native(act_fn="gelu", normalization_type="LN"), bridge=_boot_native, tolerance=FLOAT64)
add(
    "TransformerLensNative@rms_gated_rotary",
    _native(act_fn="silu", normalization_type="RMS", gated_mlp=True, positional_embedding_type="rotary",
            n_key_value_heads=2),
    bridge=_boot_native,
)  # fmt: skip


class _TextTower:
    """Stands for transformers' AutoModel while Gemma 3n is built: the text path never touches the other towers."""

    @staticmethod
    def from_config(config, **options):
        return transformers.AutoModel.from_config(config, **options) if "text" in config.model_type else nn.Identity()


def _gemma3n() -> nn.Module:
    try:
        from transformers.models.gemma3n import modeling_gemma3n
    except ImportError as error:
        raise NotHere(str(error)) from error
    text = dict(
        HEADS8, num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=2,
        sliding_window=3, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB, laurel_rank=4,
        altup_num_inputs=2, activation_sparsity_pattern=[0.5, 0.0, 0.5, 0.0],
    )  # fmt: skip
    audio = dict(
        hidden_size=16, conf_num_hidden_layers=1, conf_num_attention_heads=2, vocab_size=8, vocab_offset=VOCAB + 8,
        sscp_conv_channel_size=(4, 4),
    )  # fmt: skip
    config = transformers.Gemma3nConfig(
        text_config=text, vision_config=dict(hidden_size=16, vocab_size=8, vocab_offset=VOCAB), audio_config=audio
    )
    original, modeling_gemma3n.AutoModel = modeling_gemma3n.AutoModel, _TextTower
    try:
        return transformers.Gemma3nForConditionalGeneration(config)
    finally:
        modeling_gemma3n.AutoModel = original


def _boot_gemma3n(model: nn.Module):
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    name = "Gemma3nForConditionalGeneration"
    adapter = SUPPORTED_ARCHITECTURES[name]
    required, adapter.required_libraries = adapter.required_libraries, []  # timm, for the vision tower left out
    try:
        model.config.architectures = [name]
        return build_bridge_from_module(model, name, hf_config=model.config)
    finally:
        adapter.required_libraries = required


add(
    "Gemma3nForConditionalGeneration", _gemma3n, bridge=_boot_gemma3n, refused="Gemma3nTextDecoderLayer",
    note="text path only",
)  # fmt: skip
