"""One model per structural family against dense float64 vectors made from the Hugging Face module."""

import pytest
import torch
from transformers.models.bloom.modeling_bloom import bloom_gelu_forward

import tl_norms

from . import zoo
from .reference import Case, dense, mixing_ratio

LLAMA = dict(
    layers="model.layers", attention="self_attn", output="self_attn.o_proj", ff="mlp", ln1="input_layernorm",
    ln2="post_attention_layernorm",
)  # fmt: skip
SANDWICH = dict(
    LLAMA, behind_attention="post_attention_layernorm", ln2="pre_feedforward_layernorm",
    behind_ff="post_feedforward_layernorm",
)  # fmt: skip

DECODER = dict(
    layers="model.decoder.layers", attention="self_attn", output="self_attn.out_proj", ff="fc1+activation_fn+fc2",
    cross="encoder_attn", cross_output="encoder_attn.out_proj", ff_bias_out=("2.bias",),
)  # fmt: skip


def _t5_heads(attention, seen):
    values = seen["layer.0.SelfAttention.v"][1]
    heads = values.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
    return seen["layer.0.SelfAttention"][1][-1], heads


def _t5_cross_heads(attention, seen):
    values = seen["layer.1.EncDecAttention.v"][1]
    return seen["layer.1.EncDecAttention"][1][-1], values.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)


def _bloom_heads(attention, seen):
    fused = seen["self_attention.query_key_value"][1]
    batch, positions, _ = fused.shape
    heads = fused.view(batch, positions, attention.num_heads, 3, attention.head_dim)[..., 2, :].transpose(1, 2)
    return seen["self_attention.attention_dropout"][1].reshape(batch, -1, positions, positions), heads


def _gptj_heads(attention, seen):
    values = seen["attn.v_proj"][1].unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
    return seen["attn.attn_dropout"][1], values


def _clamps(module, full):
    """Where on the path some neuron of some expert reaches the limit."""
    experts = module.experts
    u = torch.einsum("bnd,edf->bnef", full, experts.gate_up_proj) + experts.gate_up_proj_bias[None, None]
    gate, up = u[..., ::2], u[..., 1::2]
    assert bool((gate.max() > experts.limit) & (up.abs().max() > experts.limit)), "the clamps are reached"
    times = torch.cat([(experts.limit / gate).flatten(), (experts.limit / up.abs()).flatten()])
    return sorted(set(times[(times > 0) & (times < 1)].tolist()))


CASES = {
    "pre-LN LayerNorm": Case(
        "GPT2LMHeadModel", "transformer.h", "attn", "attn.c_proj", "mlp", ln1="ln_1", ln2="ln_2",
        ff_bias_out=("c_proj.bias",),
    ),
    "pre-LN RMSNorm, grouped queries, biases": Case("LlamaForCausalLM", **LLAMA, ff_bias_out=("down_proj.bias",)),
    "sandwich": Case("Gemma2ForCausalLM", **SANDWICH),
    "post-norm before the sum": Case(
        "Olmo2ForCausalLM",
        **dict(SANDWICH, ln1=None, ln2=None),
    ),
    "parallel, one norm": Case(
        "GPTJForCausalLM", "transformer.h", "attn", "attn.out_proj", "mlp", layout="parallel", ln2="ln_1",
        ff_bias_out=("fc_out.bias",), heads=_gptj_heads,
    ),
    "parallel, two norms": Case(
        "GPTNeoXForCausalLM", "gpt_neox.layers", "attention", "attention.dense", "mlp", layout="parallel",
        ln2="post_attention_layernorm", ff_bias_out=("dense_4h_to_h.bias",), float32=True,
    ),
    "scaled residual": Case("GraniteForCausalLM", **LLAMA, factor=0.5),
    "clamped values": Case("OlmoForCausalLM@clipped", **LLAMA, centred=True),
    "mixture, softmax of the top": Case("MixtralForCausalLM", **LLAMA, routers=("gate",)),
    "mixture, gated shared expert": Case("Qwen2MoeForCausalLM", **LLAMA, routers=("gate", "shared_expert_gate")),
    "mixture, sigmoid in groups; latent attention": Case(
        "DeepseekV3ForCausalLM@grouped_experts", **LLAMA, routers=("gate",)
    ),
    "experts with weighted inputs": Case("Llama4ForCausalLM", **dict(LLAMA, ff="feed_forward"), routers=("router",)),
    "sinks": Case(
        "GptOssForCausalLM", **LLAMA, routers=("router",), ff_bias_out=("experts.down_proj_bias",)
    ),
    "sinks, clamps reached": Case(
        "GptOssForCausalLM@narrow", **LLAMA, routers=("router",), ff_bias_out=("experts.down_proj_bias",),
        kinks=_clamps, scale=("gate_up_proj", 12.0), nodes=16,
    ),
    "gated attention, hybrid": Case("Qwen3NextForCausalLM", **LLAMA, routers=("gate", "shared_expert_gate")),
    "hybrid": Case("BambaForCausalLM", **dict(LLAMA, ff="feed_forward", ln2="pre_ff_layernorm")),
    "inner norms": Case("BitNetForCausalLM", **LLAMA, inner_norms=("ffn_sub_norm",)),
    "T5 encoder": Case(
        "T5ForConditionalGeneration@gated_gelu", "encoder.block", "layer.0.SelfAttention", "layer.0.SelfAttention.o",
        "layer.1.DenseReluDense", ln1="layer.0.layer_norm", ln2="layer.1.layer_norm", heads=_t5_heads,
    ),
    "residual behind the norm": Case(
        "BloomForCausalLM@residual_behind_norm", "transformer.h", "self_attention", "self_attention.dense",
        "mlp.dense_h_to_4h+mlp.gelu_impl+mlp.dense_4h_to_h",
        ln1="input_layernorm", ln2="post_attention_layernorm", base_is_normed=True, heads=_bloom_heads,
        ff_bias_out=("2.bias",), activation=("1", bloom_gelu_forward),
    ),
    "post-norm encoder": Case(
        "BertForMaskedLM", "bert.encoder.layer", "attention.self", "attention.output.dense",
        "intermediate+output.dense",
        ln2="attention.output.LayerNorm", ln3="output.LayerNorm", post_norm=True, ff_bias_out=("1.bias",),
    ),
    "post-norm encoder of an encoder-decoder": Case(
        "BartForConditionalGeneration", "model.encoder.layers", "self_attn", "self_attn.out_proj",
        "fc1+activation_fn+fc2", ln2="self_attn_layer_norm", ln3="final_layer_norm", post_norm=True,
        ff_bias_out=("2.bias",),
    ),
    "post-norm decoder with cross-attention": Case(
        "MarianMTModel@decoder", **dict(DECODER, cross_ln="self_attn_layer_norm", ln2="encoder_attn_layer_norm"),
        ln3="final_layer_norm", post_norm=True,
    ),
    "pre-norm decoder with cross-attention": Case(
        "PegasusForConditionalGeneration@decoder", **dict(DECODER, ln2="final_layer_norm"),
    ),
    "T5 decoder": Case(
        "T5ForConditionalGeneration@gated_gelu_decoder", "decoder.block", "layer.0.SelfAttention",
        "layer.0.SelfAttention.o", "layer.2.DenseReluDense", ln2="layer.2.layer_norm", heads=_t5_heads,
        cross="layer.1.EncDecAttention", cross_output="layer.1.EncDecAttention.o", cross_heads=_t5_cross_heads,
    ),
    "sandwich decoder with cross-attention": Case(
        "T5GemmaForConditionalGeneration@decoder", "model.decoder.layers", "self_attn", "self_attn.o_proj", "mlp",
        behind_attention="post_self_attn_layernorm", cross="cross_attn", cross_output="cross_attn.o_proj",
        behind_cross="post_cross_attn_layernorm", ln2="pre_feedforward_layernorm",
        behind_ff="post_feedforward_layernorm",
    ),
}  # fmt: skip


LONG = ("sinks, clamps reached",)  # integrals over all pieces between the kinks


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in CASES]
)
def test_maps_and_mixing_ratios_are_those_of_the_dense_vectors(family):
    case = CASES[family]
    spec = zoo.SPECS[case.spec]
    try:
        model, wrapped = zoo.make(spec), zoo.make(spec)
        _scale(case, model, wrapped)
        bridge = zoo.boot(spec, wrapped)
        tokens = zoo.tokens(1 if case.kinks else 2, 6 if case.cross else 4)  # decoders get five of six
        cache = zoo.run(bridge, tokens, spec)
    except zoo.NotHere as reason:
        pytest.skip(str(reason))
    extra = {"decoder_input_ids": tokens[:, :5]} if hasattr(bridge, "decoder_blocks") else {}
    if case.heads is _t5_heads:
        extra["output_attentions"] = True
    expected = dense(case, model, tokens, extra)
    norms = tl_norms.block_norms(cache, "all", layers=[case.layer], stack=spec.stack)
    assert set(norms.scopes) == set(expected)
    tolerance = 1e-9 if spec.tolerance < 1e-8 and not case.float32 else 2e-6
    for scope, vectors in expected.items():
        size = float(vectors.norm(dim=-1).max())
        assert float((norms[scope][0] - vectors.norm(dim=-1)).abs().max()) < tolerance * size, scope
        assert float((norms.mixing_ratio(scope)[0] - mixing_ratio(vectors)).abs().max()) < tolerance, scope


def _scale(case: Case, *models) -> None:
    name, factor = case.scale or ("", 1.0)
    with torch.no_grad():
        for model in models:
            for parameter in (p for n, p in model.named_parameters() if name in n):
                parameter.mul_(factor)
