"""The chain belongs to the model's code: not to its dtype, the size of its embeddings or its initialisation."""

import pytest
import torch
from torch import nn

import tl_norms
from tl_norms.plan import reader_of

from . import zoo
from .test_zoo import EXACT, cached, worst

HALF = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
LARGE = ("GPTNeoXForCausalLM", "GPTJForCausalLM", "PhiForCausalLM", "CohereForCausalLM", "LlamaForCausalLM",
         "BertForMaskedLM", "Gemma2ForCausalLM", "OpenAIGPTLMHeadModel")  # fmt: skip


def embeddings(model: nn.Module) -> list[nn.Parameter]:
    return [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]


def massive(model: nn.Module) -> None:
    """Embeddings × 1000, and one activation of 1e3 in the middle of the run besides."""
    for weight in embeddings(model):
        weight.mul_(1000)
        if len(weight) > 10:
            weight[7, 3] = 1e3


def freshly_initialised(model: nn.Module) -> None:
    """initializer_range 0.002, zero biases, norms that do nothing: norms that read the same write the same."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.mul_(0.002 / parameter.float().std().to(parameter))
        else:
            parameter.fill_(1.0 if name.endswith("weight") and "norm" in name.lower() else 0.0)


def small(model: nn.Module) -> None:
    for weight in embeddings(model):
        weight.mul_(0.001)


def read(spec: zoo.Spec, dtype: torch.dtype, change=None):
    """The blocks of a spec's model, changed before it is booted."""
    try:
        model = zoo.make(spec, dtype)
        if change is not None:
            with torch.no_grad():
                change(model)
        bridge = zoo.boot(spec, model)
    except zoo.NotHere as reason:
        pytest.skip(str(reason))
    try:
        return reader_of(bridge, spec.stack).blocks()
    except tl_norms.UnsupportedArchitectureError:
        try:
            zoo.run(bridge, zoo.tokens())
        except Exception as error:
            pytest.skip(f"TransformerLens itself cannot run it: {error}")
        raise


@pytest.mark.parametrize("name", EXACT)
def test_the_chain_is_the_same_in_half_precision_with_massive_activations(name):
    assert read(zoo.SPECS[name], torch.bfloat16, massive) == expected_blocks(name)


@pytest.mark.slow  # a model is booted for each
@pytest.mark.parametrize("dtype, change", [(torch.float16, small), (torch.bfloat16, freshly_initialised)])
@pytest.mark.parametrize("name", EXACT)
def test_the_chain_is_the_same_whatever_the_weights_are(name, dtype, change):
    assert read(zoo.SPECS[name], dtype, change) == expected_blocks(name)


def expected_blocks(name: str):
    """Those of the model with its own weights."""
    return reader_of(cached(name).bridge, zoo.SPECS[name].stack).blocks()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_massive_activations_hide_nothing_from_the_numbers(name, dtype):
    spec = zoo.SPECS[name]
    model = zoo.make(spec, dtype)
    with torch.no_grad():
        for weight in embeddings(model):
            if len(weight) > 10:
                weight[7, 3] = 1e3
    bridge = zoo.boot(spec, model)
    cache = zoo.run(bridge, torch.full((1, 6), 7) + torch.arange(6))
    norms = tl_norms.block_norms(cache, "all")
    assert norms.scopes == tl_norms.scopes(zoo.cached(spec).bridge)
    assert worst(norms) < HALF[dtype]


# gains of one look like folded ones
@pytest.mark.filterwarnings("ignore::tl_norms.errors.WeightProcessingWarning")
@pytest.mark.parametrize("name", ["GPTNeoXForCausalLM", "LlamaForCausalLM", "OlmoForCausalLM@clipped"])
def test_a_model_is_read_again_after_training(name):
    """Where two norms gave the same, the gains of the wrong one would be used afterwards."""
    spec = zoo.SPECS[name]
    model = zoo.make(spec)
    with torch.no_grad():
        freshly_initialised(model)
    bridge = zoo.boot(spec, model)
    before = reader_of(bridge).blocks()
    assert worst(tl_norms.block_norms(zoo.run(bridge, zoo.tokens()), "all")) < spec.tolerance
    zoo.jitter(model)
    assert worst(tl_norms.block_norms(zoo.run(bridge, zoo.tokens()), "all")) < spec.tolerance
    assert reader_of(bridge).blocks() == before


def test_a_clip_is_taken_from_the_configuration():
    """clip_qkv=50 is reached by no value of the short run, but may be by those of a cache."""
    options = {**zoo.SPECS["OlmoForCausalLM@clipped"].options, "clip_qkv": 50.0}
    spec = zoo.Spec("OlmoForCausalLM", lambda: zoo.from_config("OlmoForCausalLM", "OlmoConfig", options))
    model = zoo.make(spec)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.mul_(1000)
    bridge = zoo.boot(spec, model)
    assert reader_of(bridge).blocks()[0].attention()[1].clip == 50.0
    cache = zoo.run(bridge, zoo.tokens())
    assert cache["v", 0].abs().max() > 50
    assert worst(tl_norms.block_norms(cache, "all")) < spec.tolerance


def test_nan_weights_are_named():
    spec = zoo.SPECS["LlamaForCausalLM"]
    model = zoo.make(spec)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(tl_norms.errors.NonFiniteError, match=r"blocks\.1\..*up_proj.*weight"):
        tl_norms.scopes(zoo.boot(spec, model))


@pytest.mark.parametrize("factors, refused", [((1.0, 1.0), False), ((0.5, 0.5), False), ((0.5, 1.0), True)])
def test_parallel_blocks_may_scale_both_branches_alike_only(factors, refused):
    spec = zoo.SPECS["GPTNeoXForCausalLM"]
    model = zoo.make(spec)
    for layer in model.gpt_neox.layers:

        def forward(hidden_states, attention_mask=None, layer=layer, **options):
            given = {n: options[n] for n in ("position_embeddings", "position_ids") if n in options}
            normed = layer.input_layernorm(hidden_states)
            attended = layer.attention(normed, attention_mask=attention_mask, **given)[0]
            hidden = layer.mlp(layer.post_attention_layernorm(hidden_states))
            return hidden_states + factors[0] * attended + factors[1] * hidden

        layer.forward = forward
    bridge = zoo.boot(spec, model)
    if refused:
        with pytest.raises(tl_norms.UnsupportedArchitectureError, match="1, 0.5 and 1 times"):
            tl_norms.scopes(bridge)
    else:
        assert worst(tl_norms.block_norms(zoo.run(bridge, zoo.tokens()), "all")) < spec.tolerance
