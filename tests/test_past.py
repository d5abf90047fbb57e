"""A few new positions on a key-value cache: maps of m queries and n keys, the last rows of those of the whole text."""

import copy

import pytest
import torch
from tiny import FAMILIES, KINDS, make, same

import tl_norms

HOOKED = [("hooked", name) for name in ("gpt2", "llama_gqa", "gemma", "mistral") if FAMILIES[name].converter]
BRIDGE = [("bridge", "gpt_neox")]
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # it has a new name
RUNS = (HOOKED if "hooked" in KINDS else []) + (BRIDGE if "bridge" in KINDS else [])


def neox():
    """A bridge whose attention is transformers' own, and takes its key-value cache."""
    import transformers
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    config = transformers.GPTNeoXConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.set_attn_implementation("eager")
    model.config.architectures = ["GPTNeoXForCausalLM"]
    return build_bridge_from_module(model, "GPTNeoXForCausalLM", hf_config=model.config)


@torch.no_grad()
def runs(kind, name, first, batch=2, n=9):
    """The cache of a whole text, that of its last positions on a key-value cache, and the latter."""
    if kind == "bridge":
        transformers = pytest.importorskip("transformers")
        model = neox()
        past, argument = transformers.DynamicCache(config=model.original_model.config), "past_key_values"
    else:
        model = make(name, kind).model
        past, argument = key_value_cache(model, batch), "past_kv_cache"
    ids = torch.randint(3, 61, (batch, n), generator=torch.Generator().manual_seed(3))
    _, whole = model.run_with_cache(ids)
    before, after = ids[:, :first], ids[:, first:]
    model(before, **{argument: past}, **more_for(kind, before))
    _, cache = model.run_with_cache(after, **{argument: past}, **more_for(kind, after))
    return whole, cache, past


def more_for(kind, ids):
    """HookedTransformer asks its tokenizer for a mask otherwise."""
    return {"use_cache": True} if kind == "bridge" else {"attention_mask": torch.ones_like(ids)}


def key_value_cache(model, batch):
    try:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache as Kind
    except ImportError:
        from transformer_lens import HookedTransformerKeyValueCache as Kind
    return Kind.init_cache(model.cfg, model.cfg.device, batch)


@pytest.mark.parametrize("first", [8, 6, 1])
@pytest.mark.parametrize("kind, name", RUNS)
def test_maps_are_the_last_rows_of_those_of_the_whole_text(kind, name, first):
    whole, cache, past = runs(kind, name, first)
    full = tl_norms.with_past_values(cache, past)
    wanted, found = tl_norms.block_norms(whole, "all"), tl_norms.block_norms(full, "all")
    assert found.scopes == wanted.scopes and found.past == first and found["attn"].shape == (2, 2, 9 - first, 9)
    close = {"rtol": 1e-9, "atol": 1e-10}
    for scope in wanted.scopes:
        torch.testing.assert_close(found[scope], wanted[scope][:, :, first:], **close)
        torch.testing.assert_close(found.mixing_ratio(scope), wanted.mixing_ratio(scope)[:, :, first:], **close)
        torch.testing.assert_close(found.remainder(scope), wanted.remainder(scope)[:, :, first:], **close)
        assert torch.equal(found.pairs(scope), wanted.pairs(scope)[:, first:])
    torch.testing.assert_close(found.value_norms, wanted.value_norms, **close)
    for name in ("head_norms", "attention", "attention_residual"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name)[..., first:, :], **close)
    torch.testing.assert_close(found.attention_mixing_ratio(), wanted.attention_mixing_ratio()[..., first:], **close)
    torch.testing.assert_close(tl_norms.weighted_value_norms(full), found.head_norms, **close)
    assert found.shares == {} and found.boundary is None
    assert "position" in repr(found)


@pytest.mark.parametrize("measure", ["l1", "alti", "share", "onto"])
@pytest.mark.parametrize("kind, name", RUNS[-1:])
def test_every_measure(kind, name, measure):
    whole, cache, past = runs(kind, name, 6)
    directions = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    measure = tl_norms.Onto(directions) if measure == "onto" else measure
    wanted = tl_norms.block_norms(whole, "all", measure=measure)
    found = tl_norms.block_norms(tl_norms.with_past_values(cache, past), "all", measure=measure)
    for scope in wanted.scopes:
        torch.testing.assert_close(found[scope], wanted[scope][:, :, 6:], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind, name", RUNS)
def test_vectors_themselves(kind, name):
    whole, cache, past = runs(kind, name, 6)
    full = tl_norms.with_past_values(cache, past)
    scope = tl_norms.scopes(cache.model)[-1]
    wanted, found = tl_norms.decompose(whole, 1, scope), tl_norms.decompose(full, 1, scope)
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(found.vectors(), wanted.vectors(query=slice(6, None)), **close)
    for keys in (2, slice(4, 8), 7, slice(0, 6), slice(6, 9)):
        torch.testing.assert_close(found.vectors(1, keys), wanted.vectors(7, keys), **close)
    torch.testing.assert_close(found.norms(), wanted.norms()[:, 6:], **close)
    directions = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(found.project(directions), wanted.project(directions)[:, 6:], **close)
    heads = tl_norms.project_heads(full, 1, directions)
    torch.testing.assert_close(heads, tl_norms.project_heads(whole, 1, directions)[:, :, 6:], **close)
    assert found.boundary is None


@pytest.mark.parametrize("kind, name", RUNS)
def test_without_the_values_the_error_says_which_and_how(kind, name):
    _, cache, past = runs(kind, name, 6)
    kept = {name: value for name, value in cache.cache_dict.items()}
    with pytest.raises(tl_norms.MissingActivationError, match=r"blocks\.0\.attn\..*with_past_values") as caught:
        tl_norms.block_norms(cache)
    assert "3 new positions" in str(caught.value) and "9 keys" in str(caught.value)
    full = tl_norms.with_past_values(cache, past)
    assert all(cache.cache_dict[name] is value for name, value in kept.items())  # it is another cache
    shared = [name for name in kept if full.cache_dict[name] is kept[name]]
    assert len(shared) >= len(kept) - 6
    again = tl_norms.with_past_values(full, past)
    assert same(tl_norms.block_norms(again)["attn"], tl_norms.block_norms(full)["attn"])


@pytest.mark.parametrize("kind, name", RUNS)
def test_a_cache_that_has_grown_since(kind, name):
    whole, cache, past = runs(kind, name, 6)
    argument, more = "past_key_values" if kind == "bridge" else "past_kv_cache", torch.tensor([[5], [6]])
    with torch.no_grad():
        cache.model(more, **{argument: past}, **more_for(kind, more))
    found = tl_norms.block_norms(tl_norms.with_past_values(cache, past))
    torch.testing.assert_close(found["attn"], tl_norms.block_norms(whole)["attn"][:, :, 6:], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind, name", RUNS[-1:])
def test_what_needs_the_whole_text_says_so(kind, name):
    from tl_norms.methods import attention_rollout, globenc, information_flow
    from tl_norms.metrics import ff_amplification

    _, cache, past = runs(kind, name, 6)
    full = tl_norms.with_past_values(cache, past)
    for call in (
        lambda: tl_norms.attribute(full, tl_norms.logit(3)),
        lambda: tl_norms.attribute(cache, tl_norms.logit(3), attention="integrated"),
        lambda: tl_norms.direct_attribution(full, tl_norms.logit(3)),
        lambda: tl_norms.propagate(full),
        lambda: information_flow(full),
        lambda: globenc(full),
        lambda: ff_amplification(tl_norms.ffn_maps(full)),
        lambda: tl_norms.page.page_of_norms(tl_norms.block_norms(full), ["a"] * 3),
    ):
        with pytest.raises(tl_norms.CacheShapeError, match="key-value cache.*run_with_cache"):
            call()
    with pytest.raises(tl_norms.TLNormsError):
        attention_rollout(full)
    with pytest.raises(tl_norms.MaskError, match="leave mask out"):
        tl_norms.block_norms(full, mask=torch.ones(2, 3))
    words = [["a", "b", "c", "d", "e", "f", "g", "h", "i"]] * 2
    top = tl_norms.block_norms(full, tokens=words).top(0, k=9)
    assert {row[2] for row in top.rows} == {"g"} and {row[4] for row in top.rows} <= set(words[0][:7])


@pytest.mark.parametrize("kind, name", RUNS)
def test_another_key_value_cache_is_refused(kind, name):
    _, cache, past = runs(kind, name, 6)
    for wrong in (None, 5, [], [None], [(1, 2)], object()):
        with pytest.raises(tl_norms.UnknownOptionError, match="past_kv_cache"):
            tl_norms.with_past_values(cache, wrong)
    with pytest.raises(tl_norms.NotACacheError):
        tl_norms.with_past_values({}, past)
    _, _, short = runs(kind, name, 6, n=8)
    _, _, wide = runs(kind, name, 6, batch=1)
    for other in (short, wide):
        with pytest.raises(tl_norms.CacheShapeError, match="the run has 2 texts, 9 keys"):
            tl_norms.with_past_values(cache, other)
    changed = copy.deepcopy(past)
    values = changed.entries[0].past_values if kind == "hooked" else changed.layers[0].values
    values += 0.5
    with pytest.raises(tl_norms.DecompositionError, match="other values"):
        tl_norms.with_past_values(cache, changed)


@pytest.mark.parametrize("kind, name", RUNS)
def test_changed_past_values_are_seen(kind, name):
    """The check of every scope covers the keys of the past."""
    _, cache, past = runs(kind, name, 6)
    full = tl_norms.with_past_values(cache, past)
    hook = next(n for n in full.cache_dict if "blocks.1." in n and full.cache_dict[n] is not cache.cache_dict[n])
    wrong = full.cache_dict[hook].clone()
    wrong[:, 5] *= 1.5
    entries = {n: wrong if v is full.cache_dict[hook] else v for n, v in full.cache_dict.items()}
    with pytest.raises(tl_norms.DecompositionError, match="layer 1"):
        tl_norms.block_norms(type(cache)(entries, cache.model))
