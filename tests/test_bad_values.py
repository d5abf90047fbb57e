"""Values that mean nothing, one by one: always an error of this package's family that says what was expected."""

import copy
import math

import numpy as np
import pytest
import torch
from tiny import KINDS, make
from transformer_lens import ActivationCache

import tl_norms


@pytest.fixture(scope="module")
def tiny():
    return make("gpt2", KINDS[0])


@pytest.fixture(scope="module")
def cache(tiny):
    return tiny.cache()


LAYERS = [
    [],
    (),
    "0",
    "all",
    1.0,
    0.5,
    True,
    [None],
    [True],
    [0, 0],
    [0, -2],
    [1.0],
    ["0"],
    b"0",
    {},
    [[0]],
    math.nan,
    9,
]
SCOPES = [5, 1.0, [], [["attn"]], [None], [5], True, b"attn", "attn_lm", ["attn", "attn_lm"], ("attn", 0), "", [""]]
SKETCHES = [0, -1, 2.5, True, False, "8", math.nan, math.inf, [8], b"8"]
BUDGETS = ["1GB", math.nan, math.inf, 0, -5, True, [1], "1", 0.5, b"1"]
CHECKS = ["no", "yes", 2, [], math.nan, "False", (), {}]
MEASURES = ["L2", "", 1, None, True, ["l2"], b"l2", "cosine", torch.zeros(3), tl_norms.Onto]
RULES = ["IG", "", 1, True, None, ["ig"], b"ig", "none"]
BIASES = ["Player", "", 1, True, ["player"], b"player", "fix"]
EDITS = ["Refuse", "", 1, True, ["add"], "keep"]
STACKS = [1, True, ["decoder"], b"decoder", "encoders", "decoder"]
MASKS = {
    "zeros": torch.zeros(2, 7),
    "one empty text": torch.tensor([[1] * 7, [0] * 7]),
    "additive": torch.tensor([[0.0] * 7, [0.0] * 6 + [-math.inf]]),
    "nan": torch.full((2, 7), math.nan),
    "fractions": torch.full((2, 7), 0.5),
    "counts": torch.arange(14).reshape(2, 7),
    "short": torch.ones(2, 6),
    "one axis": torch.ones(7),
    "three axes": torch.ones(2, 7, 1),
    "number": 1,
    "words": "yes",
    "transposed": torch.ones(7, 2),
    "complex": torch.ones(2, 7, dtype=torch.complex64) * 1j,
}
CALLS = {
    "block_norms": tl_norms.block_norms,
    "ffn_maps": tl_norms.ffn_maps,
    "decompose": lambda cache, **options: tl_norms.decompose(cache, 0, "attn", **options),
    "extend_cache": tl_norms.extend_cache,
    "NormRecorder": lambda cache, **options: tl_norms.NormRecorder(cache.model, **options),
}
OPTIONS = {
    "sketch": SKETCHES, "max_memory": BUDGETS, "check": CHECKS, "bias": BIASES, "ff": RULES, "measure": MEASURES,
    "edits": EDITS, "stack": STACKS,
}  # fmt: skip


def refused(call, *arguments, **options):
    """A typed error with a message that says something."""
    with pytest.raises(tl_norms.TLNormsError) as error:
        call(*arguments, **options)
    assert len(str(error.value)) > 25, str(error.value)


@pytest.mark.parametrize("value", LAYERS, ids=repr)
def test_layers(cache, value):
    for call in (tl_norms.block_norms, tl_norms.ffn_maps, tl_norms.extend_cache):
        refused(call, cache, layers=value)
    refused(tl_norms.value_norms, cache, value)
    refused(tl_norms.weighted_value_norms, cache, value)
    refused(tl_norms.NormRecorder, cache.model, None, value)
    refused(tl_norms.required_hooks, cache.model, None, value)


@pytest.mark.parametrize("value", [*LAYERS, None, [0, 1]], ids=repr)
def test_one_layer(cache, value):
    refused(tl_norms.decompose, cache, value, "attn")
    refused(tl_norms.value_vectors, cache, value)


@pytest.mark.parametrize("value", SCOPES, ids=repr)
def test_scopes(cache, value):
    for call in (tl_norms.block_norms, tl_norms.extend_cache):
        refused(call, cache, value)
    refused(tl_norms.NormRecorder, cache.model, value)
    refused(tl_norms.required_hooks, cache.model, value)


@pytest.mark.parametrize("value", [*SCOPES, None, "all", ["attn"]], ids=repr)
def test_one_scope(cache, value):
    refused(tl_norms.decompose, cache, 0, value)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OPTIONS.items() for value in values], ids=repr
)
def test_options(cache, call, name, value):
    refused(CALLS[call], cache, **{name: value})


@pytest.mark.parametrize("call", CALLS)
def test_an_option_that_does_not_exist(cache, call):
    refused(CALLS[call], cache, scale=2)
    refused(CALLS[call], cache, attention_mask=None)


@pytest.mark.parametrize("mask", MASKS)
def test_masks(cache, mask):
    for call in ("block_norms", "decompose", "extend_cache"):
        refused(CALLS[call], cache, mask=MASKS[mask])
    refused(tl_norms.value_norms, cache, mask=MASKS[mask])


def test_a_source_mask_without_a_source(cache):
    refused(tl_norms.block_norms, cache, source_mask=torch.ones(2, 7))


@pytest.mark.parametrize("position", [99, -99, 7, True, slice(0, 7, 2), slice(None, None, -1)], ids=repr)
def test_positions(cache, position):
    parts = tl_norms.decompose(cache, 0, "attn_res")
    refused(parts.vectors, position)
    refused(parts.vectors, None, position)


def test_numbers_of_numpy_are_numbers(cache):
    whole = tl_norms.block_norms(cache)
    one = tl_norms.block_norms(cache, layers=np.int64(1))
    assert one.layers == (1,) and torch.equal(one["attn", 1], whole["attn", 1])
    assert tl_norms.block_norms(cache, layers=np.array([0, 1])).layers == (0, 1)
    assert tl_norms.decompose(cache, np.int64(-1), "attn").layer == 1


def edited(cache, **tensors) -> ActivationCache:
    """The cache with some tensors replaced by functions of themselves."""
    entries = {name: value for name, value in cache.cache_dict.items()}
    for part, change in tensors.items():
        for name in list(entries):
            if name.endswith(part):
                entries[name] = change(entries[name])
    return ActivationCache(entries, cache.model)


ODD = {
    "pattern of some queries": dict(hook_pattern=lambda t: t[:, :, -1:]),
    "pattern of some keys": dict(hook_pattern=lambda t: t[..., :3]),
    "pattern without heads": dict(hook_pattern=lambda t: t.mean(1)),
    "pattern of one text": dict(hook_pattern=lambda t: t[:1]),
    "no text at all": dict(hook_pattern=lambda t: t[:0]),
    "no position at all": dict(hook_pattern=lambda t: t[:, :, :0, :0]),
}


@pytest.mark.parametrize("name", ODD)
def test_caches_of_other_shapes(cache, name):
    odd = edited(cache, **ODD[name])
    for call in ("block_norms", "ffn_maps", "decompose"):
        refused(CALLS[call], odd)
    refused(tl_norms.weighted_value_norms, odd)
    refused(tl_norms.value_norms, odd)


@pytest.mark.parametrize("part", ["pos", "batch"])
def test_streams_of_other_shapes(tiny, cache, part):
    names = [name for name in tl_norms.required_hooks(tiny.model) if cache[name].ndim == 3]
    entries = dict(cache.cache_dict)
    for name in names:
        entries[name] = entries[name][:, -1:] if part == "pos" else entries[name][:1]
    refused(tl_norms.block_norms, ActivationCache(entries, cache.model))


def test_a_batch_axis_that_is_not_there(tiny, cache):
    refused(tl_norms.block_norms, ActivationCache(dict(cache.cache_dict), cache.model, has_batch_dim=False))
    single = tiny.cache(tiny.tokens(batch=1), remove_batch_dim=True)
    refused(tl_norms.block_norms, ActivationCache(dict(single.cache_dict), cache.model, has_batch_dim=True))


def test_layers_of_different_batches(tiny, cache):
    other = tiny.cache(tiny.tokens(batch=3))
    mixed = {name: (other if ".1." in name else cache)[name] for name in cache.cache_dict}
    refused(tl_norms.block_norms, ActivationCache(mixed, cache.model))


@pytest.mark.parametrize("size", [1e20, 1e30, 1e-25, 1e-30])
def test_numbers_whose_squares_overflow_or_vanish(size):
    tiny = make("gpt2", KINDS[0], torch.float32)
    cache = tiny.cache()
    scaled = {
        name: value * size if value.ndim != 4 or "pattern" not in name else value for name, value in cache.items()
    }
    with pytest.raises(tl_norms.NonFiniteError, match="square"):
        tl_norms.block_norms(ActivationCache(scaled, cache.model))


def test_weights_that_are_not_numbers():
    tiny = make("gpt2", KINDS[0], fresh=True)
    cache, model = tiny.cache(), copy.deepcopy(tiny.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    refused(tl_norms.block_norms, ActivationCache(dict(cache.cache_dict), model))


def test_results_carry_no_graph(tiny):
    entries = {name: value.clone() for name, value in tiny.cache().items()}
    entries = {name: value.requires_grad_() if value.is_floating_point() else value for name, value in entries.items()}
    cache = ActivationCache(entries, tiny.model)
    norms = tl_norms.block_norms(cache)
    held = [norms["attn"], norms.mixing_ratio("attn"), norms.value_norms, norms.head_norms, norms.attention]
    parts = tl_norms.decompose(cache, 0, "attn_res")
    held += [*norms.patterns, parts.vectors(), parts.remainder, parts.total(), tl_norms.value_norms(cache)]
    assert not any(value.requires_grad for value in held)
