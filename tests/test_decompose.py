"""`decompose`: the vectors themselves, whole and in parts."""

import copy
import pickle

import pytest
import reference
import torch
from tiny import CASES, KINDS, make

import tl_norms

SCOPES = ("attn", "attn_res", "attn_res_ln")


@pytest.fixture(params=CASES, ids=str)
def run(request):
    tiny = make(*request.param)
    return tiny, tiny.cache(), reference.analyse(tiny.hf, tiny.tokens())


def near(found, expected, tiny):
    limit = 2e-6 if tiny.kind == "hooked" and tiny.family.rms else 1e-10  # as in test_norms
    return found.shape == expected.shape and float((found - expected).abs().max() / expected.abs().max()) < limit


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("layer", [0, -1])
def test_vectors_and_everything_made_of_them_agree_with_the_reference(run, layer, scope):
    tiny, cache, layers = run
    parts, expected = tl_norms.decompose(cache, layer, scope), layers[layer]
    assert parts.layer == layer % 2 and parts.scope == scope
    assert near(parts.vectors(), expected.vectors[scope], tiny)
    if expected.rest[scope].abs().max() > 0:
        assert near(parts.remainder, expected.rest[scope], tiny)
    else:  # no bias anywhere: nothing may be left over
        assert not parts.remainder.any()
    assert near(parts.total(), expected.total(scope), tiny)
    assert near(parts.norms(), expected.norms(scope), tiny)
    assert near(parts.mixing_ratio(), expected.mixing_ratio(scope), tiny)


@pytest.mark.parametrize("scope", SCOPES)
def test_parts_add_up_to_the_cached_activation(run, scope):
    """Against TransformerLens' own tensor where it has one."""
    tiny, cache, _ = run
    parts = tl_norms.decompose(cache, 0, scope)
    total = parts.vectors().sum(2) + parts.remainder
    assert torch.allclose(total, parts.total(), rtol=0, atol=1e-12)
    assert 0 <= parts.error < (1e-6 if tiny.family.rms and scope == "attn_res_ln" else 1e-14)
    assert parts.error == pytest.approx(float(tl_norms.block_norms(cache, scope).error[scope][0]))
    if scope == "attn":  # on a bridge BERT's hook_attn_out is taken behind the layer norm
        hook = "blocks.0.attn.o.hook_out" if tiny.kind == "bridge" else "blocks.0.hook_attn_out"
        assert torch.allclose(total, cache[hook], rtol=0, atol=1e-12)


@pytest.mark.parametrize("scope", SCOPES)
def test_queries_and_keys_may_be_chosen(run, scope):
    tiny, cache, _ = run
    parts = tl_norms.decompose(cache, 1, scope)
    every = parts.vectors()

    def same(found, expected):
        return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=1e-13)

    assert same(parts.vectors(query=5), every[:, 5:6])
    assert same(parts.vectors(query=-1), every[:, 6:7])
    assert same(parts.vectors(key=0), every[:, :, 0:1])
    assert same(parts.vectors(query=3, key=3), every[:, 3:4, 3:4])
    assert same(parts.vectors(query=3, key=slice(1, 5)), every[:, 3:4, 1:5])
    assert same(parts.vectors(query=slice(2, None), key=slice(None, -2)), every[:, 2:, :-2])
    assert same(parts.vectors(query=slice(4, 2)), every[:, 4:2])
    with pytest.raises(IndexError, match="stride"):
        parts.vectors(query=slice(0, 6, 2))
    with pytest.raises(IndexError):
        parts.vectors(query=7)


def test_norms_are_the_lengths_of_the_vectors_and_of_block_norms(run):
    _, cache, _ = run
    norms = tl_norms.block_norms(cache, SCOPES)
    for scope in SCOPES:
        parts = tl_norms.decompose(cache, 1, scope)
        assert torch.allclose(parts.norms(), parts.vectors().norm(dim=-1), rtol=1e-9, atol=0)
        assert torch.allclose(parts.norms(), norms[scope][1], rtol=1e-12, atol=0)  # there, scopes share head vectors
        assert torch.allclose(parts.mixing_ratio(), norms.mixing_ratio(scope)[1], rtol=1e-12, atol=0)
        assert repr(parts).startswith(f"Decomposition(layer=1, scope={scope!r}") and f"{parts.error:.1e}" in repr(parts)


@pytest.mark.parametrize("what", ["W_O", "b_O", "gain", "pattern", "values", "W_in", "W_out"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_changed_weights_or_activations_are_refused(kind, what):
    """They would be half of the old and half of the new; nothing else would notice."""
    tiny = make("bert", kind, fresh=True)
    cache = tiny.cache()
    scope = {"W_in": "attn_res_ln_ff", "W_out": "attn_res_ln_ff", "b_O": "attn"}.get(what, "attn_res_ln")
    parts = tl_norms.decompose(cache, 1, scope)
    before = parts.vectors().clone()
    block = tiny.model.blocks[1]
    written = {
        "pattern": lambda: cache["pattern", 1],
        "values": lambda: cache["v", 1],
        "W_O": lambda: block.attn.o.original_component.weight if kind == "bridge" else block.attn.W_O,
        "b_O": lambda: block.attn.o.original_component.bias if kind == "bridge" else block.attn.b_O,
        "gain": lambda: block.ln1.original_component.weight if kind == "bridge" else block.ln1.w,
        "W_in": lambda: getattr(block.mlp, "in").original_component.weight if kind == "bridge" else block.mlp.W_in,
        "W_out": lambda: block.mlp.out.original_component.weight if kind == "bridge" else block.mlp.W_out,
    }[what]()
    assert torch.equal(parts.vectors(), before)
    with torch.no_grad():
        written[0] += 1
    for method in (parts.vectors, parts.norms, parts.total, parts.mixing_ratio, lambda: parts.remainder):
        with pytest.raises(tl_norms.DecompositionError, match="changed in place after"):
            method()
    assert "layer=1" in repr(parts)
    with pytest.raises(tl_norms.DecompositionError, match="changed in place after"):
        copy.deepcopy(parts)


@pytest.mark.parametrize("scope", ["attn", "attn_res_ln", "attn_res_ln_ff", "attn_res_ln_ff_res_ln"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
def test_copies_stand_on_their_own(scope, copied):
    tiny = make("bert", KINDS[0], fresh=True)
    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter *= 1.5
    parts = tl_norms.decompose(tiny.cache(), 1, scope)
    before, copy_of = parts.vectors(), copied(parts)
    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter.zero_()
    assert torch.equal(copy_of.vectors(), before) and copy_of.error == parts.error
