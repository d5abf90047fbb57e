"""Layers of one shape taken at once: the same numbers as layer by layer, and errors that name a layer."""

import dataclasses

import pytest
import torch
from architectures import zoo
from tiny import KINDS, make

import tl_norms
import tl_norms.plan
from tl_norms.linear.pieces import pieces

WAYS = {
    "formed": {},
    "formed, a layer at a time": {"formed": 2 * 7 * 7 * 64},
    "factored": {"formed": 0},
    "factored, a key at a time": {"formed": 0, "head_vectors": 1},
    "one layer at once": {"copied": 1},
}


def cut(monkeypatch, **sizes) -> None:
    chosen = dataclasses.replace(pieces(torch.device("cpu")), **sizes)
    for module in ("joined_layers", "linear.joined.formed", "linear.joined.factored", "linear.measure.factors"):
        monkeypatch.setattr(f"tl_norms.{module}.pieces", lambda device: chosen)


def at_once(cache, monkeypatch, **options) -> tl_norms.BlockNorms:
    """No layer by itself."""
    with monkeypatch.context() as patched:
        patched.setattr("tl_norms.joined_layers.layer_numbers", None)
        return tl_norms.block_norms(cache, **options)


def one_by_one(cache, monkeypatch, **options) -> tl_norms.BlockNorms:
    with monkeypatch.context() as patched:
        patched.setattr("tl_norms.joined_layers._groups", lambda *args: [])
        return tl_norms.block_norms(cache, **options)


def assert_same(found: tl_norms.BlockNorms, wanted: tl_norms.BlockNorms) -> None:
    assert found.scopes == wanted.scopes and found.layers == wanted.layers and found.causal == wanted.causal
    for scope in wanted.scopes:
        torch.testing.assert_close(found[scope], wanted[scope], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found.mixing_ratio(scope), wanted.mixing_ratio(scope), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found.remainder(scope), wanted.remainder(scope), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found.error[scope], wanted.error[scope], rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(found.value_norms, wanted.value_norms, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["bert", "llama_gqa"])
def test_same_numbers_as_layer_by_layer(name, way, monkeypatch):
    tiny = make(name, KINDS[0])
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    cache = tiny.cache(mask=mask)
    cut(monkeypatch, **WAYS[way])
    found = at_once(cache, monkeypatch, mask=mask)
    assert_same(found, one_by_one(cache, monkeypatch, mask=mask))


@pytest.mark.parametrize("kind", KINDS)
def test_of_every_kind_of_model_and_of_chosen_layers(kind, monkeypatch):
    cache = make("gpt2", kind).cache()
    assert_same(at_once(cache, monkeypatch, layers=[-1]), one_by_one(cache, monkeypatch, layers=[-1]))


@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "GraniteForCausalLM"])
def test_norms_after_attention_and_scaled_sums(name, monkeypatch):
    try:
        cache = zoo.cached(zoo.SPECS[name]).cache
    except (zoo.NotHere, ValueError, ImportError) as reason:
        pytest.skip(str(reason))
    scopes = [scope for scope in tl_norms.scopes(cache.model) if "ff" not in scope]
    assert_same(at_once(cache, monkeypatch, scopes=scopes[:-1]), one_by_one(cache, monkeypatch, scopes=scopes[:-1]))


@pytest.mark.parametrize("of", ["values", "pattern"])
def test_what_is_wrong_in_one_layer_is_said_of_that_layer(of):
    tiny = make("bert", KINDS[0])
    name = getattr(tl_norms.plan.reader_of(tiny.model).blocks()[1].attention()[1], of)
    cache = tiny.cache()
    changed = dict(cache.cache_dict)
    changed[name] = changed[name] * 1.01
    edited = type(cache)(changed, cache.model)
    with pytest.raises(tl_norms.DecompositionError, match="layer 1"):
        tl_norms.block_norms(edited)
    assert_same(tl_norms.block_norms(edited, layers=0), tl_norms.block_norms(cache, layers=0))


def test_a_layer_of_its_own_shape_is_taken_by_itself(monkeypatch):
    cache = make("bert", KINDS[0]).cache()
    wanted = tl_norms.block_norms(cache)
    changed = dict(cache.cache_dict)
    for name, value in cache.cache_dict.items():
        if name.startswith("blocks.1."):
            changed[name] = value.float()
    found = tl_norms.block_norms(type(cache)(changed, cache.model))
    torch.testing.assert_close(found["attn_res_ln"], wanted["attn_res_ln"], rtol=1e-4, atol=1e-5, check_dtype=False)
