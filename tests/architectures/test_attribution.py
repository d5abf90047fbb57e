"""Every decoder and encoder with a head of the zoo is attributed exactly at every cut, or refused by name."""

import pytest
import torch

import tl_norms

from . import zoo
from .test_zoo import EXACT, cached

REFUSED = {
    "HrmTextForCausalLM": "several times",
    "OuroForCausalLM": "several times",
    "Gemma4ForCausalLM": "not what the next layer reads",
    "LEDForConditionalGeneration@decoder": "LEDEncoderAttention",
    "LongT5ForConditionalGeneration@decoder": "hook_pattern",
    "LongT5ForConditionalGeneration@transient_global_decoder": "LongT5",
}
WHOLE = [name for name in EXACT if zoo.SPECS[name].stack != "encoder" and name not in REFUSED]
TARGETS = [tl_norms.logit(7) - 2 * tl_norms.logit(9, at=2), tl_norms.logit(3, at=1)]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_every_cut_adds_up(name, dtype):
    spec, made = zoo.SPECS[name], cached(name, dtype)
    found = tl_norms.attribute(made.cache, TARGETS)
    tolerance = min(5 * spec.limit(dtype), zoo.FLOAT32)  # contributions can be larger than what they add up to
    assert float(found.error.max()) < tolerance
    total = found.tokens.sum(-1)
    for stack in ("decoder", "encoder") if found.source_stream is not None else (None,):
        for layer in found.layers:
            if layer not in found.unattended:  # edges are compared with the value when they are made
                edges = found.edges(layer, stack)
                if stack != "encoder":
                    heads = found.heads[:, layer, :, : edges.shape[2]]  # Laguna: more heads in some layers
                    torch.testing.assert_close(edges.sum((-1, -2)), heads, rtol=1e-4, atol=1e-5)
    if found.source_stream is None:
        left = found.value - total - found.offset[:, 0]
    else:
        assert float(found.source_error.max()) < tolerance
        left = found.value - total - found.source_tokens.sum(-1) - found.source_offset[:, 0]
    size = torch.maximum(found.stream[:, 0].abs().amax(-1), found.offset[:, 0].abs())
    assert float((left.abs() / size.clamp_min(found.value.abs())).max()) < 10 * tolerance
    direct = tl_norms.direct_attribution(made.cache, TARGETS)
    parts = direct.embed + direct.heads.sum((1, -1, -2)) + direct.ffn.sum(1) + direct.offset
    parts = parts if direct.source_heads is None else parts + direct.source_heads.sum((1, -1, -2))
    torch.testing.assert_close(parts, direct.value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=["float64", "float32"]
)
def test_every_cut_adds_up_with_softmaxes_integrated(name, dtype):
    spec, made = zoo.SPECS[name], cached(name, dtype)
    found = tl_norms.attribute(made.cache, TARGETS, attention="integrated")
    limit = max(spec.limit(dtype), zoo.FLOAT32_NORMS)  # softmaxes, rotary embeddings and ALiBi are float32 in most
    assert float(found.error.max()) < min(5 * limit, zoo.FLOAT32)
    attended = [layer for layer in found.layers if layer not in found.unattended]
    assert all(found.nodes[layer] > 1 for layer in attended)
    for layer in attended:  # logits and edges are compared with the value when they are made
        both = found.logits(layer).sum((-1, -2)) + found.edges(layer).sum((-1, -2))
        assert both.shape == found.heads[:, layer].shape


@pytest.mark.parametrize(
    "name, attention", [("LlamaForCausalLM", "LlamaAttention"), ("DeepseekV3ForCausalLM", "DeepseekV3Attention")]
)
def test_patterns_that_cannot_be_rebuilt_are_refused_by_name(name, attention, monkeypatch):
    """As if no way to turn pairs were known."""
    spec = zoo.SPECS[name]
    bridge = zoo.boot(spec, zoo.make(spec))
    cache = zoo.run(bridge, zoo.tokens())
    monkeypatch.setattr("tl_norms.blocks.position.TURNS", ())
    assert float(tl_norms.attribute(cache, TARGETS).error.max()) < zoo.FLOAT32
    with pytest.raises(tl_norms.UnsupportedArchitectureError, match=f"{attention}.*held"):
        tl_norms.attribute(cache, TARGETS, attention="integrated")


@pytest.mark.parametrize("name", ["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "GlmMoeDsaForCausalLM"])
def test_queries_and_keys_of_latent_attention_are_the_models_own(name):
    """Products of the held queries and keys, with what the bridge hooks behind the rotary embedding."""
    from tl_norms.held_run import map_of
    from tl_norms.linear.operators import applied

    made = cached(name)
    stack = map_of(made.cache, attention="integrated").stack
    for number in range(stack.n_layers):
        part = stack.layer(number).attention.integrated[0][1]
        x = stack.stream(number)
        own = torch.einsum("bqhe,bkhe->bhqk", applied(part.queries, x), applied(part.keys, x))
        at = f"blocks.{number}.attn."
        real = made.cache[at + "hook_q"] @ made.cache[at + "hook_k"].transpose(-1, -2)
        torch.testing.assert_close(own, real, rtol=1e-5, atol=1e-5)  # norms are float32


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_as_a_whole_is_refused_by_name(name):
    made = cached(name)
    with pytest.raises(tl_norms.TLNormsError, match=REFUSED[name]):
        tl_norms.attribute(made.cache, TARGETS)


def test_at_least_ninety_architectures_are_attributed():
    assert len({zoo.SPECS[name].architecture for name in WHOLE}) >= 90
