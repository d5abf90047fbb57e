"""Runs that a hook changed: refused by the name of what was changed, or analysed with it; from caches and recorders."""

import pytest
import torch
from tiny import CASES, make

import tl_norms

RUNS = [case for case in CASES if case[0] in ("gpt2", "llama_gqa", "bert")]
LAYER, HEAD, POSITION = 1, 2, 3


def at(tiny, name: str) -> str:
    return f"blocks.{LAYER}.{name}"


def attention_output(tiny) -> str:
    """What attention writes into the stream."""
    return at(tiny, "attn.o.hook_out" if tiny.kind == "bridge" else "hook_attn_out")


def feed_forward_output(tiny) -> str:
    return at(tiny, "mlp.out.hook_out" if tiny.kind == "bridge" else "hook_mlp_out")


def edited(tiny, *hooks):
    """The cache of a run with these hooks, [(name, function of the tensor)]."""
    fwd_hooks = [(name, lambda tensor, hook, change=change: change(tensor)) for name, change in hooks]
    with torch.no_grad(), tiny.model.hooks(fwd_hooks=fwd_hooks):
        return tiny.model.run_with_cache(tiny.tokens())[1]


def heads_of(tensor):
    """Mixed values with an axis of heads, [batch pos head d_head], a view of the same numbers."""
    return tensor.view(*tensor.shape[:2], 4, -1)


def times_head(factor):
    def change(tensor):
        tensor = tensor.clone()
        heads_of(tensor)[:, :, HEAD] *= factor
        return tensor

    return change


def other_head(tensor):
    tensor = tensor.clone()
    heads_of(tensor)[:, :, HEAD] = torch.linspace(-1, 1, heads_of(tensor).shape[-1]).to(tensor)
    return tensor


def steered(tensor):
    tensor = tensor.clone()
    tensor[:, POSITION] += torch.linspace(-2, 3, tensor.shape[-1]).to(tensor)
    return tensor


def complete(norms):
    return all(float(error.max()) < 1e-6 for error in norms.error.values())


@pytest.fixture(params=RUNS, ids=str)
def tiny(request):
    return make(*request.param)


@pytest.mark.parametrize("factor", [0.0, -2.0])
def test_a_head_times_a_number_is_that_head_with_other_values(tiny, factor):
    """Scaling head h at the mixed values scales its source vectors, as scaling all its values would."""
    cache = edited(tiny, (at(tiny, "attn.hook_z"), times_head(factor)))
    with pytest.raises(tl_norms.DecompositionError, match=r"head 2, all positions: × .*edits='replace'"):
        tl_norms.block_norms(cache)
    norms = tl_norms.block_norms(cache, "all", edits="replace")
    assert complete(norms)
    (edit,) = norms.edits
    assert (edit.layer, edit.heads, edit.everywhere) == (LAYER, (HEAD,), True)
    assert edit.factor == pytest.approx(factor, abs=1e-6)
    mixture, n_keys = tl_norms.value_vectors(tiny.cache(), LAYER), 7
    pattern = cache["pattern", LAYER]
    factors = torch.ones(4, dtype=mixture.dtype)
    factors[HEAD] = factor
    if LAYER == 1:  # the values of the edited run are those of the plain run: nothing before them was changed
        vectors = torch.einsum("h,bhqk,bhkd->bqkd", factors, pattern, mixture)
        torch.testing.assert_close(norms["attn", LAYER], vectors.norm(dim=-1), rtol=1e-9, atol=1e-10)
        assert vectors.shape[2] == n_keys


def test_a_patched_head_belongs_to_the_remainder(tiny):
    cache = edited(tiny, (at(tiny, "attn.hook_z"), other_head))
    replaced = tl_norms.decompose(cache, LAYER, "attn", edits="replace")
    plain = tl_norms.value_vectors(tiny.cache(), LAYER)
    pattern = cache["pattern", LAYER].clone()
    kept = torch.einsum("bhqk,bhkd->bqkd", pattern[:, [0, 1, 3]], plain[:, [0, 1, 3]])
    torch.testing.assert_close(replaced.vectors(), kept, rtol=1e-9, atol=1e-10)
    added = tl_norms.decompose(cache, LAYER, "attn", edits="add")
    torch.testing.assert_close(added.vectors(), torch.einsum("bhqk,bhkd->bqkd", pattern, plain), rtol=1e-9, atol=1e-10)
    for parts in (replaced, added):
        truth = cache[attention_output(tiny)]
        torch.testing.assert_close(parts.vectors().sum(-2) + parts.remainder, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("place", [attention_output, feed_forward_output], ids=["attention", "feed-forward"])
def test_a_steered_position(tiny, place):
    """A vector added at one position: the sources stay there (add), or give way to it (replace)."""
    cache, plain = edited(tiny, (place(tiny), steered)), tiny.cache()
    with pytest.raises(tl_norms.DecompositionError, match="position"):
        tl_norms.block_norms(cache, "all")
    for mode in ("add", "replace"):
        norms = tl_norms.block_norms(cache, "all", edits=mode)
        assert complete(norms)
        assert {position for edit in norms.edits for _, position in edit.positions} == {POSITION}
    scope = "attn" if place is attention_output else next(s for s in norms.scopes if s.endswith("ff"))
    before = tl_norms.block_norms(plain, scope)[scope, LAYER]
    added = tl_norms.block_norms(cache, scope, edits="add")[scope, LAYER]
    replaced = tl_norms.block_norms(cache, scope, edits="replace")[scope, LAYER]
    torch.testing.assert_close(added, before, rtol=1e-9, atol=1e-10)
    assert float(replaced[:, POSITION].max()) == 0
    others = [p for p in range(7) if p != POSITION]
    torch.testing.assert_close(replaced[:, others], before[:, others], rtol=1e-9, atol=1e-10)


def test_several_edits_at_once(tiny):
    cache = edited(
        tiny, (at(tiny, "attn.hook_z"), times_head(0.0)), (feed_forward_output(tiny), lambda tensor: tensor * 0.5)
    )
    norms = tl_norms.block_norms(cache, "all", edits="replace")
    assert complete(norms)
    assert [edit.factor for edit in norms.edits] == pytest.approx([0.0, 0.5], abs=1e-6)
    assert "× 0.5" in repr(norms)


def test_an_edited_neuron(tiny):
    """One neuron set to a number: what the feed-forward writes is no multiple, so it is the remainder's."""

    def change(tensor):
        tensor = tensor.clone()
        tensor[:, POSITION, 5] = 3.0
        return tensor

    cache = edited(tiny, (at(tiny, "mlp.hook_post"), change))
    scope = next(s for s in tl_norms.scopes(tiny.model) if s.endswith("ff"))
    with pytest.raises(tl_norms.DecompositionError, match="position"):
        tl_norms.block_norms(cache, scope)
    norms = tl_norms.block_norms(cache, "all", edits="replace")
    assert complete(norms)
    assert float(norms[scope, LAYER][:, POSITION].max()) == 0


def test_a_recorder_sees_the_same_edits(tiny):
    place = at(tiny, "attn.hook_z")
    cache = edited(tiny, (place, times_head(0.0)))
    wanted = tl_norms.block_norms(cache, "all", edits="replace")
    recorder = tl_norms.NormRecorder(tiny.model, "all", edits="replace")
    with torch.no_grad(), recorder:
        tiny.model.run_with_hooks(tiny.tokens(), fwd_hooks=[(place, lambda t, hook: times_head(0.0)(t))])
    for scope in wanted.scopes:
        torch.testing.assert_close(recorder.norms[scope], wanted[scope], rtol=1e-12, atol=1e-12)
    assert recorder.norms.edits == wanted.edits


def test_a_run_without_edits_is_the_same_in_every_mode(tiny):
    cache = tiny.cache()
    plain = tl_norms.block_norms(cache, "all")
    for mode in ("replace", "add"):
        norms = tl_norms.block_norms(cache, "all", edits=mode)
        assert norms.edits == ()
        for scope in norms.scopes:
            torch.testing.assert_close(norms[scope], plain[scope], rtol=0, atol=0)


def test_an_unknown_mode(tiny):
    with pytest.raises(tl_norms.UnknownOptionError, match="'refuse' or 'replace' or 'add'"):
        tl_norms.block_norms(tiny.cache(), edits="keep")
