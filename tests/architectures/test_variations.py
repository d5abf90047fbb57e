"""Odd shapes, short and padded inputs, half precision: what a real model may bring that the zoo's defaults do not."""

from dataclasses import replace

import pytest
import torch

import tl_norms

from . import zoo
from .test_zoo import worst

SHAPES = {
    "one layer": dict(num_hidden_layers=1),
    "one kv head": dict(num_key_value_heads=1),
    "wide heads": dict(head_dim=12),
    "narrow feed-forward": dict(intermediate_size=6),
    "odd sizes": dict(hidden_size=36, num_attention_heads=3, num_key_value_heads=3, head_dim=10, intermediate_size=37),
    "other biases": dict(attention_bias=True, mlp_bias=False),
}
CORE = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Olmo2", "Granite", "Mixtral", "Cohere", "Starcoder2")
PADDED = ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM", "MixtralForCausalLM")
HALF = ("BertForMaskedLM", "GPT2LMHeadModel", "Qwen2ForCausalLM", "Gemma2ForCausalLM", "GPTNeoXForCausalLM",
        "MixtralForCausalLM")  # fmt: skip
SHORT = ("GPT2LMHeadModel", "BertForMaskedLM", "MixtralForCausalLM", "GPTJForCausalLM", "Qwen3NextForCausalLM")


def analysed(spec: zoo.Spec, dtype=torch.float64, **options):
    try:
        bridge = zoo.boot(spec, zoo.make(spec, dtype))
        return bridge, zoo.run(bridge, options.pop("tokens", zoo.tokens()), spec, **options)
    except zoo.NotHere as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", CORE)
def test_other_shapes(family, shape):
    name = f"{family}ForCausalLM"
    spec = zoo.SPECS[name]
    options = {**spec.options, **SHAPES[shape]}
    if "head_dim" in SHAPES[shape] and family in ("Qwen2", "Olmo2", "Granite", "Cohere", "Starcoder2"):
        options.pop("head_dim")  # these derive it
        options["hidden_size"] = 12 * options["num_attention_heads"]
    if "layer_types" in options:
        options["layer_types"] = options["layer_types"][-options["num_hidden_layers"] :]
    config = {"Gemma2": "Gemma2Config"}.get(family, f"{family}Config")
    varied = replace(spec, build=lambda: zoo.from_config(name, config, options))
    _, cache = analysed(varied)
    norms = tl_norms.block_norms(cache, "all")
    assert worst(norms) < spec.tolerance
    assert norms["attn"].shape == (options["num_hidden_layers"], 2, 7, 7)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (3, 1)])
def test_short_inputs(name, shape):
    spec = zoo.SPECS[name]
    _, cache = analysed(spec, tokens=zoo.tokens(*shape))
    norms = tl_norms.block_norms(cache, "all")
    assert worst(norms) < spec.tolerance
    if shape[1] == 1:
        assert not norms.mixing_ratio("attn").any(), "there is no other position to mix in"


@pytest.mark.parametrize("name", SHORT)
def test_without_a_batch_axis(name):
    spec = zoo.SPECS[name]
    bridge, whole = analysed(spec, tokens=zoo.tokens(1, 6))
    single = tl_norms.block_norms(whole.remove_batch_dim(), "all")
    again = zoo.run(bridge, zoo.tokens(1, 6))
    batched = tl_norms.block_norms(again, "all")
    for scope in batched.scopes:
        torch.testing.assert_close(single[scope], batched[scope][:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PADDED)
def test_padded_batches_give_what_the_text_alone_gives(name):
    spec = zoo.SPECS[name]
    tokens = zoo.tokens(2, 7)
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    bridge, cache = analysed(spec, tokens=tokens, attention_mask=mask)
    padded = tl_norms.block_norms(cache, "all", mask=mask)
    alone = tl_norms.block_norms(zoo.run(bridge, tokens[1:, :5]), "all")
    assert worst(padded) < spec.tolerance
    for scope in alone.scopes:
        torch.testing.assert_close(padded[scope][:, 1:, :5, :5], alone[scope], rtol=1e-5, atol=1e-6)
        assert not padded[scope][:, 1, 5:].any() and not padded[scope][:, 1, :, 5:].any()


@pytest.mark.parametrize("name", HALF)
def test_bfloat16_models_are_analysed_in_float32(name):
    spec = zoo.SPECS[name]
    _, cache = analysed(spec, torch.bfloat16)
    norms = tl_norms.block_norms(cache, "all")
    assert norms["attn"].dtype == torch.float32
    assert worst(norms) < 1e-1


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPTNeoXForCausalLM", "GPTNeoXForCausalLM@sequential"])
def test_an_attention_that_writes_nothing_does_not_hide_the_layout(name):
    spec = zoo.SPECS[name]
    made = zoo.cached(spec)
    model = zoo.make(spec)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "o_proj" in path or "attention.dense" in path:
                parameter.zero_()
    bridge = zoo.boot(spec, model)
    assert tl_norms.scopes(bridge) == tl_norms.scopes(made.bridge)
    assert worst(tl_norms.block_norms(zoo.run(bridge, zoo.tokens()), "all")) < spec.tolerance
