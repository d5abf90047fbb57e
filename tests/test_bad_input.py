"""Bad input: one clear error each. Every test asserts the type and that the message names what is needed."""

import copy
import math

import pytest
import torch
from tiny import CASES, FAMILIES, KINDS, boot, hugging_face, make
from torch import nn
from transformer_lens import ActivationCache

import tl_norms

CALLS = {
    "block_norms": lambda cache: tl_norms.block_norms(cache),
    "value_norms": lambda cache: tl_norms.value_norms(cache),
    "weighted_value_norms": lambda cache: tl_norms.weighted_value_norms(cache),
    "value_vectors": lambda cache: tl_norms.value_vectors(cache, 0),
    "decompose": lambda cache: tl_norms.decompose(cache, 0, "attn_res"),
    "extend_cache": lambda cache: tl_norms.extend_cache(cache),
}
LAYERED = {
    "block_norms": lambda cache, layer: tl_norms.block_norms(cache, layers=layer),
    "value_norms": lambda cache, layer: tl_norms.value_norms(cache, layer),
    "weighted_value_norms": lambda cache, layer: tl_norms.weighted_value_norms(cache, [0, layer]),
    "value_vectors": lambda cache, layer: tl_norms.value_vectors(cache, layer),
    "decompose": lambda cache, layer: tl_norms.decompose(cache, layer, "attn"),
    "required_hooks": lambda cache, layer: tl_norms.required_hooks(cache.model, layers=layer),
}
bridges = pytest.mark.skipif("bridge" not in KINDS, reason="this TransformerLens has no bridge")


@pytest.fixture(params=[case for case in CASES if case[0] in ("gpt2", "llama_gqa", "bert")], ids=str)
def tiny(request):
    return make(*request.param)


def raises(error, *words):
    """An error of the family whose message has all of these words, and no traceback-like repr."""
    assert issubclass(error, tl_norms.TLNormsError)

    class Check:
        def __enter__(self):
            self.caught = pytest.raises(error)
            self.info = self.caught.__enter__()

        def __exit__(self, *args):
            done = self.caught.__exit__(*args)
            message = str(self.info.value)
            assert type(self.info.value) is error
            for word in words:
                assert str(word) in message, f"{word!r} is not in: {message}"
            return done

    return Check()


@pytest.mark.parametrize("call", CALLS)
def test_missing_hook(tiny, call):
    """Which hook, and the names_filter that keeps it."""
    values = next(name for name in tl_norms.required_hooks(tiny.model, layers=0) if ".v" in name or "hook_v" in name)
    names = [name for name in tl_norms.required_hooks(tiny.model) if name != values]
    with raises(tl_norms.MissingActivationError, values, "names_filter=", "tl_norms.required_hooks"):
        CALLS[call](tiny.cache(names_filter=names))


@pytest.mark.parametrize("call", CALLS)
def test_no_attention_pattern(tiny, call):
    names = [name for name in tl_norms.required_hooks(tiny.model) if not name.endswith("hook_pattern")]
    with raises(tl_norms.AttentionPatternError, "blocks.0.attn.hook_pattern", "eager", "names_filter"):
        CALLS[call](tiny.cache(names_filter=names))


def test_unknown_scope(tiny):
    cache = tiny.cache()
    for call in (
        lambda: tl_norms.block_norms(cache, "attn_lm"),
        lambda: tl_norms.block_norms(cache, ["attn", "attn_lm"]),
        lambda: tl_norms.decompose(cache, 0, "attn_lm"),
        lambda: tl_norms.extend_cache(cache, "attn_lm"),
        lambda: tl_norms.required_hooks(tiny.model, "attn_lm"),
        lambda: tl_norms.block_norms(cache)["attn_lm"],
        lambda: tl_norms.block_norms(cache).mixing_ratio("attn_lm"),
    ):
        with raises(tl_norms.UnknownScopeError, "'attn_lm'", *tl_norms.scopes(tiny.model), "AttnRes-N"):
            call()


def test_scope_that_was_not_computed(tiny):
    norms = tl_norms.block_norms(tiny.cache(), "attn")
    with raises(tl_norms.UnknownScopeError, "'attn_res'", "not computed", "scopes=['attn_res']"):
        norms["attn_res"]


@pytest.mark.parametrize("layer", [2, -3, 99])
@pytest.mark.parametrize("call", LAYERED)
def test_unknown_layer(tiny, call, layer):
    with raises(tl_norms.UnknownLayerError, f"layer {layer}", "0 to 1"):
        LAYERED[call](tiny.cache(), layer)


@pytest.mark.parametrize("shape", [(2, 6), (1, 7), (7, 2), (7,), (2, 1, 1, 7), (2, 7, 7)], ids=str)
def test_mask_of_the_wrong_shape(tiny, shape):
    cache, mask = tiny.cache(), torch.ones(shape, dtype=torch.long)
    for call in (
        lambda: tl_norms.block_norms(cache, mask=mask),
        lambda: tl_norms.decompose(cache, 0, "attn", mask=mask),
        lambda: tl_norms.extend_cache(cache, mask=mask),
    ):
        with raises(tl_norms.MaskError, list(shape), "attention_mask"):
            call()


def test_mask_of_the_wrong_shape_without_a_batch_axis():
    tiny = make("gpt2", KINDS[0])
    cache = tiny.cache(tiny.tokens(batch=1), remove_batch_dim=True)
    with raises(tl_norms.MaskError, "[1, 7]", "[pos]"):
        tl_norms.block_norms(cache, mask=torch.ones(1, 7))


def test_mask_that_the_model_did_not_get(tiny):
    """The pattern attends to what the mask hides."""
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    with raises(tl_norms.MaskError, "hook_pattern", "attention_mask=mask"):
        tl_norms.block_norms(tiny.cache(), mask=mask)


@pytest.mark.parametrize("thing", [{}, torch.zeros(2), "text", None, 3, [1, 2]], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_not_a_cache(call, thing):
    with raises(tl_norms.NotACacheError, type(thing).__name__, "run_with_cache"):
        CALLS[call](thing)


def test_a_dict_of_activations_is_not_a_cache(tiny):
    with raises(tl_norms.NotACacheError, "dict", "return_cache_object"):
        tl_norms.block_norms(tiny.cache(return_cache_object=False))


def test_a_cache_without_its_model(tiny):
    with raises(tl_norms.NotACacheError, "model", "cache.model = model"):
        tl_norms.block_norms(ActivationCache(tiny.cache().cache_dict, None))


@pytest.mark.parametrize("name, kind", [case for case in CASES if case[0] in ("gpt2", "llama_gqa", "bert")])
def test_a_model_that_changed_since(name, kind):
    tiny = make(name, kind, fresh=True)
    cache = tiny.cache()
    tl_norms.block_norms(cache)
    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter.mul_(1.01)
    with raises(tl_norms.DecompositionError, "layer 0", "'attn'", "tolerance", "after the cache was made"):
        tl_norms.block_norms(cache)
    with raises(tl_norms.DecompositionError, "layer 1", "'attn'"):  # compared whether asked for or not
        tl_norms.decompose(cache, 1, "attn_res")
    unchecked = tl_norms.block_norms(cache, check=False)
    assert float(unchecked.error["attn"].min()) > 1e-3, "the error stays visible"


@pytest.mark.parametrize("name, kind", [case for case in CASES if case[0] in ("gpt2", "bert")])
def test_an_activation_that_a_hook_edited(name, kind):
    tiny = make(name, kind, fresh=True)
    names = tl_norms.required_hooks(tiny.model, "attn", layers=0)
    written = next(name for name in names if "pattern" not in name and ".v." not in name and "hook_v" not in name)

    def edit(activation, hook):
        return activation + 1

    with tiny.model.hooks(fwd_hooks=[(written, edit)]):
        cache = tiny.cache()
    with raises(tl_norms.DecompositionError, "layer 0", written, "hook"):
        tl_norms.block_norms(cache)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite(tiny, value):
    for hook in tl_norms.required_hooks(tiny.model, "attn_res", layers=0):
        cache = tiny.cache()
        bad = cache.cache_dict[hook].clone()
        bad[1, 3] = value
        tensors = {name: bad if other is cache.cache_dict[hook] else other for name, other in cache.cache_dict.items()}
        with raises(tl_norms.NonFiniteError, hook, "mask=attention_mask", "float32"):
            tl_norms.block_norms(ActivationCache(tensors, cache.model))


@bridges
def test_a_model_without_attention():
    transformers = pytest.importorskip("transformers")
    options = dict(num_hidden_layers=2, hidden_size=32, state_size=8, vocab_size=61)
    hf = transformers.MambaForCausalLM(transformers.MambaConfig(**options)).eval()
    model = boot(hf, "MambaForCausalLM")
    with raises(tl_norms.UnsupportedArchitectureError, "attention"):
        tl_norms.scopes(model)
    with raises(tl_norms.UnsupportedArchitectureError, "attention"):
        tl_norms.required_hooks(model)


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), hugging_face(FAMILIES["gpt2"])], ids=["Linear", "Hugging Face"])
def test_something_that_is_no_model_of_transformerlens(thing):
    cache = ActivationCache({}, thing)
    with raises(tl_norms.UnsupportedArchitectureError, type(thing).__name__, "TransformerBridge"):
        tl_norms.block_norms(cache)
    with raises(tl_norms.UnsupportedArchitectureError, type(thing).__name__):
        tl_norms.scopes(thing)


@bridges
def test_an_output_projection_that_cannot_be_read():
    """A quantised or custom matrix: the component is named."""

    class Sharded(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    hf = hugging_face(FAMILIES["gpt2"])
    hf.transformer.h[1].attn.c_proj = Sharded(hf.transformer.h[1].attn.c_proj)
    model = boot(hf, "GPT2LMHeadModel")
    with torch.no_grad():
        cache = model.run_with_cache(torch.arange(3, 9)[None])[1]
    with raises(tl_norms.UnsupportedArchitectureError, "blocks.1.attn", "Sharded"):
        tl_norms.block_norms(cache)


@bridges
def test_a_block_that_is_not_understood():
    """A residual connection of an unknown kind is refused, and the block is named."""
    hf = hugging_face(FAMILIES["gpt2"])
    feed_forward = hf.transformer.h[1].mlp.forward
    hf.transformer.h[1].mlp.forward = lambda x: feed_forward(x) + 0.1 * x.roll(1, dims=1)
    model = boot(copy.deepcopy(hf), "GPT2LMHeadModel")
    with torch.no_grad():
        cache = model.run_with_cache(torch.arange(3, 9)[None])[1]
    with pytest.raises((tl_norms.UnsupportedArchitectureError, tl_norms.DecompositionError)) as caught:
        tl_norms.block_norms(cache, "all")
    assert "blocks.1" in str(caught.value) or "layer 1" in str(caught.value)


def test_errors_are_one_family_and_also_what_python_calls_them():
    for error, builtin in {
        tl_norms.MissingActivationError: KeyError, tl_norms.AttentionPatternError: KeyError,
        tl_norms.NotACacheError: TypeError, tl_norms.UnknownScopeError: ValueError,
        tl_norms.UnknownLayerError: IndexError, tl_norms.MaskError: ValueError, tl_norms.NonFiniteError: ValueError,
        tl_norms.UnsupportedArchitectureError: NotImplementedError,
    }.items():  # fmt: skip
        assert issubclass(error, tl_norms.TLNormsError) and issubclass(error, builtin)
