"""Caches: left as they were, partial ones, and extended ones."""

import pytest
import torch
from tiny import CASES, make, same
from transformer_lens import ActivationCache

import tl_norms

SCOPES = ("attn", "attn_res", "attn_res_ln")
ASKED = [None, "attn", "attn_res", "attn_res_ln", SCOPES, "all"]


def without(cache, name):
    """The cache less one activation, under all its names."""
    gone = cache.cache_dict[name]
    kept = {other: value for other, value in cache.cache_dict.items() if value is not gone}
    return ActivationCache(kept, cache.model, has_batch_dim=cache.has_batch_dim)


@pytest.mark.parametrize("name, kind", CASES)
def test_the_cache_is_not_changed(name, kind):
    tiny = make(name, kind)
    cache = tiny.cache()
    before = {name: (value, value.clone()) for name, value in cache.cache_dict.items()}
    mask = torch.ones(tiny.tokens().shape, dtype=torch.long)
    tl_norms.block_norms(cache, SCOPES, mask=mask)
    tl_norms.value_norms(cache), tl_norms.weighted_value_norms(cache), tl_norms.value_vectors(cache, 0)
    parts = tl_norms.decompose(cache, 0, "attn_res_ln")
    parts.vectors().zero_(), parts.norms().zero_(), parts.total().zero_()
    tl_norms.extend_cache(cache)
    assert list(cache.cache_dict) == list(before) and cache.has_batch_dim and cache.model is tiny.model
    for entry, (tensor, copy) in before.items():
        assert cache.cache_dict[entry] is tensor and torch.equal(tensor, copy), entry


@pytest.mark.parametrize("scopes", ASKED, ids=str)
@pytest.mark.parametrize("name, kind", CASES)
def test_required_hooks_are_enough(name, kind, scopes):
    """A cache of exactly these gives the same numbers, everywhere."""
    tiny = make(name, kind)
    names = tl_norms.required_hooks(tiny.model, scopes)
    assert len(set(names)) == len(names)
    full, partial = tiny.cache(), tiny.cache(names_filter=names)
    assert {id(value) for value in partial.cache_dict.values()} == {id(partial.cache_dict[name]) for name in names}
    expected, norms = tl_norms.block_norms(full, scopes), tl_norms.block_norms(partial, scopes)
    for scope in expected.scopes:
        assert same(norms[scope], expected[scope])
        assert same(tl_norms.decompose(partial, 1, scope).total(), tl_norms.decompose(full, 1, scope).total())
    assert same(tl_norms.value_norms(partial), expected.value_norms)
    assert same(tl_norms.weighted_value_norms(partial), expected.head_norms)
    assert same(tl_norms.value_vectors(partial, 0), tl_norms.value_vectors(full, 0))
    last = expected.scopes[-1]
    assert same(tl_norms.extend_cache(partial, scopes)[f"norm_{last}", 0], norms[last][0])


@pytest.mark.parametrize("scopes", ASKED, ids=str)
@pytest.mark.parametrize("name, kind", CASES)
def test_required_hooks_are_no_more_than_needed(name, kind, scopes):
    """Without any one of them the analysis says which is missing."""
    tiny = make(name, kind)
    names = tl_norms.required_hooks(tiny.model, scopes)
    cache = tiny.cache(names_filter=names)
    for missing in names:
        with pytest.raises(tl_norms.MissingActivationError) as caught:
            tl_norms.block_norms(without(cache, missing), scopes)
        assert repr(missing) in str(caught.value) and "required_hooks" in str(caught.value)


@pytest.mark.parametrize("name, kind", CASES)
def test_required_hooks_of_some_layers(name, kind):
    tiny = make(name, kind)
    every = tl_norms.required_hooks(tiny.model)
    last = tl_norms.required_hooks(tiny.model, layers=-1)
    assert last and all(hook.startswith("blocks.1.") for hook in last) and set(last) < set(every)
    assert tl_norms.required_hooks(tiny.model, layers=[0, 1]) == every
    norms = tl_norms.block_norms(tiny.cache(names_filter=last), layers=1)
    assert same(norms["attn_res"], tl_norms.block_norms(tiny.cache())["attn_res"][1:])
    assert len(tl_norms.required_hooks(tiny.model, "attn")) < len(tl_norms.required_hooks(tiny.model, "all"))


@pytest.mark.parametrize("name, kind", CASES)
def test_extended_cache(name, kind):
    tiny = make(name, kind)
    cache = tiny.cache()
    extended = tl_norms.extend_cache(cache, SCOPES)
    norms = tl_norms.block_norms(cache, SCOPES)
    assert type(extended) is type(cache) and extended is not cache and extended.model is cache.model
    for entry, tensor in cache.cache_dict.items():
        assert extended.cache_dict[entry] is tensor, f"{entry} was copied"
    for scope in SCOPES:
        for layer in (0, 1):
            assert same(extended[f"norm_{scope}", layer], norms[scope][layer])
            assert same(extended[f"mixing_ratio_{scope}", layer], norms.mixing_ratio(scope)[layer])
        assert same(extended.stack_activation(f"norm_{scope}"), norms[scope])
        assert same(extended.stack_activation(f"mixing_ratio_{scope}"), norms.mixing_ratio(scope))
    assert torch.equal(extended["pattern", 0], cache["pattern", 0])
    assert same(tl_norms.block_norms(extended)["attn"], norms["attn"])  # still a cache like any other
    defaults = set(tl_norms.extend_cache(cache).cache_dict) - set(cache.cache_dict)
    assert len(defaults) == 2 * 2 * len(tl_norms.block_norms(cache).scopes)


@pytest.mark.parametrize("name, kind", CASES)
def test_extended_cache_without_a_batch_axis(name, kind):
    tiny = make(name, kind)
    tokens = tiny.tokens(batch=1)
    cache = tiny.cache(tokens, remove_batch_dim=True)
    extended = tl_norms.extend_cache(cache)
    assert extended.has_batch_dim == cache.has_batch_dim
    assert same(extended["norm_attn_res", 1], tl_norms.block_norms(cache)["attn_res"][1])
