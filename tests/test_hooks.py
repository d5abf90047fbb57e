"""Norms during the forward pass: the numbers of a cache, of the run as it was, and nothing left behind."""

import dataclasses

import pytest
import tiny
import torch
from tiny import same

import tl_norms
import tl_norms.hooks
from tl_norms.linear.pieces import pieces

FEW = [case for case in tiny.CASES if case[0] in ("gpt2", "llama_gqa", "bert")]


def n_hooks(model) -> int:
    points = {id(point): point for point in model.hook_dict.values()}.values()
    return sum(len(p._forward_hooks) + len(p._forward_pre_hooks) + len(p.fwd_hooks) for p in points)


def equal(left: tl_norms.BlockNorms, right: tl_norms.BlockNorms) -> bool:
    return (
        left.scopes == right.scopes
        and left.layers == right.layers
        and all(same(left[s], right[s]) for s in left.scopes)
        and all(same(left.mixing_ratio(s), right.mixing_ratio(s)) for s in left.scopes)
        and same(left.value_norms, right.value_norms)
        and same(left.attention, right.attention)
        and all(torch.allclose(left.error[s], right.error[s], atol=1e-7) for s in left.scopes)
    )


@pytest.mark.parametrize(("name", "kind"), tiny.CASES)
def test_the_same_numbers_as_from_a_cache(name, kind):
    made = tiny.make(name, kind, torch.float32)
    before = n_hooks(made.model)
    with torch.no_grad():
        _, norms = tl_norms.run_with_norms(made.model, made.tokens(), scopes="all")
    assert equal(norms, tl_norms.block_norms(made.cache(), "all"))
    assert n_hooks(made.model) == before


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_three_ways_to_run(name, kind):
    made = tiny.make(name, kind)
    expected = tl_norms.block_norms(made.cache(), layers=[1])
    recorder = tl_norms.NormRecorder(made.model, layers=[1])
    with torch.no_grad():
        made.model.run_with_hooks(made.tokens(), fwd_hooks=recorder.fwd_hooks)
        assert equal(recorder.norms, expected)
        recorder.reset()
        with recorder:
            output = made.model(made.tokens())
        assert equal(recorder.norms, expected)
        logits, norms = tl_norms.run_with_norms(made.model, made.tokens(), layers=[1])
    assert equal(norms, expected)
    assert torch.equal(torch.as_tensor(logits), torch.as_tensor(output))


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_what_is_kept(name, kind):
    made = tiny.make(name, kind)
    expected = tl_norms.block_norms(made.cache())
    ratios = tl_norms.NormRecorder(made.model, keep="mixing_ratio")
    function = tl_norms.NormRecorder(made.model, keep=lambda norms: norms.head_norms.mean())
    with torch.no_grad(), ratios, function:
        made.model(made.tokens())
    scope = expected.scopes[-1]
    torch.testing.assert_close(ratios.norms.mixing_ratio(scope), expected.mixing_ratio(scope), rtol=1e-12, atol=0)
    torch.testing.assert_close(ratios.norms.value_norms, expected.value_norms, rtol=1e-12, atol=0)
    torch.testing.assert_close(tl_norms.value_norms(made.cache()), expected.value_norms, rtol=1e-12, atol=0)
    assert not ratios.norms.maps
    assert torch.allclose(ratios.norms.mixing_ratio("Attn-W"), expected.attention_mixing_ratio(), rtol=1e-12, atol=0)
    with pytest.raises(tl_norms.UnknownScopeError, match="Attn-W was not kept"):
        _ = ratios.norms.attention
    with pytest.raises(tl_norms.UnknownScopeError, match="not kept"):
        ratios.norms[scope]
    with pytest.raises(tl_norms.UnknownScopeError, match="patterns"):
        _ = ratios.norms.head_norms
    for layer in expected.layers:
        assert same(function.kept[layer], expected.head_norms[layer].mean())
    with pytest.raises(tl_norms.RecorderError, match="kept"):
        _ = function.norms
    with pytest.raises(tl_norms.RecorderError, match="'maps'"):
        tl_norms.NormRecorder(made.model, keep="everything")


@pytest.mark.parametrize(("name", "kind"), FEW)
@pytest.mark.parametrize("order", ["patch first", "recorder first", "patch added inside"])
def test_norms_are_those_of_the_patched_run(name, kind, order):
    """Half the stream into layer 1: every order of hooks but an impossible one must see what the model saw."""
    made = tiny.make(name, kind)
    hook_name = next(n for n in tl_norms.required_hooks(made.model, layers=[1]) if n.endswith(("hook_in", "resid_pre")))

    def halve(tensor, hook):
        return tensor / 2

    with torch.no_grad(), made.model.hooks(fwd_hooks=[(hook_name, halve)]):
        patched = tl_norms.block_norms(made.cache())
    plain = tl_norms.block_norms(made.cache())
    recorder = tl_norms.NormRecorder(made.model)
    with torch.no_grad():
        if order == "patch first":
            hooks = [(hook_name, halve), *recorder.fwd_hooks]
            made.model.run_with_hooks(made.tokens(), fwd_hooks=hooks)
        elif order == "recorder first":
            with recorder, made.model.hooks(fwd_hooks=[(hook_name, halve)]):
                made.model(made.tokens())
        else:
            with recorder:
                made.model.run_with_hooks(made.tokens(), fwd_hooks=[(hook_name, halve)])
    assert equal(recorder.norms, patched)
    assert not equal(recorder.norms, plain)


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_an_edit_inside_a_block_is_not_passed_over(name, kind):
    """Heads edited behind the pattern: the parts no longer make the output, and the run says so."""
    made = tiny.make(name, kind)
    name_of_z = "blocks.0.attn.hook_z"
    recorder = tl_norms.NormRecorder(made.model)
    with torch.no_grad(), pytest.raises(tl_norms.DecompositionError, match="layer 0, scope 'attn'"), recorder:
        made.model.run_with_hooks(made.tokens(), fwd_hooks=[(name_of_z, lambda tensor, hook: tensor * 0)])


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_the_first_scope_that_does_not_add_up_is_named(name, kind):
    """An edit in front of the feed-forward is not blamed on the feed-forward."""
    made = tiny.make(name, kind)
    hooks = tl_norms.required_hooks(made.model, "attn", [0])
    hook_name = next(n for n in hooks if n.endswith(("attn.o.hook_out", "hook_attn_out")))
    with torch.no_grad(), made.model.hooks(fwd_hooks=[(hook_name, lambda tensor, hook: tensor / 2)]):
        cache = made.cache()
    with pytest.raises(tl_norms.DecompositionError, match="layer 0, scope 'attn'"):
        tl_norms.block_norms(cache, "all")


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_no_hook_stays_after_an_exception(name, kind):
    made = tiny.make(name, kind)
    before = n_hooks(made.model)

    def stumble(tensor, hook):
        raise RuntimeError("stumbled")

    recorder = tl_norms.NormRecorder(made.model)
    with torch.no_grad(), pytest.raises(RuntimeError, match="stumbled"), recorder:
        made.model.run_with_hooks(made.tokens(), fwd_hooks=[("blocks.1.attn.hook_pattern", stumble)])
    assert n_hooks(made.model) == before
    with pytest.raises(tl_norms.RecorderError, match="not complete"):
        _ = recorder.norms
    with torch.no_grad(), recorder:  # and it can be used again
        made.model(made.tokens())
    assert equal(recorder.norms, tl_norms.block_norms(made.cache()))


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_two_runs_are_not_mixed(name, kind):
    made = tiny.make(name, kind)
    recorder = tl_norms.NormRecorder(made.model)
    with torch.no_grad():
        made.model.run_with_hooks(made.tokens(), fwd_hooks=recorder.fwd_hooks)
        with pytest.raises(tl_norms.RecorderError, match="reset"):
            made.model.run_with_hooks(made.tokens().flip(0), fwd_hooks=recorder.fwd_hooks)


@pytest.mark.parametrize(("name", "kind"), FEW)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(name, kind, side):
    made = tiny.make(name, kind, torch.float32)  # transformers' own Llama is nan in float64 with left padding
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, slice(0, 3) if side == "left" else slice(4, 7)] = 0
    with torch.no_grad():
        _, norms = tl_norms.run_with_norms(made.model, made.tokens(), mask=mask)
    expected = tl_norms.block_norms(made.cache(mask=mask), mask=mask)
    assert equal(norms, expected)


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_activations_of_finished_blocks_are_let_go(name, kind):
    """While block 1 runs, the recorder holds nothing of block 0 but its results."""
    made = tiny.make(name, kind)
    recorder = tl_norms.NormRecorder(made.model, keep="mixing_ratio")
    held = []

    def look(tensor, hook):
        held.append(({layer: len(tensors) for layer, tensors in recorder._tensors.items()}, set(recorder._layers)))

    with torch.no_grad(), recorder:
        made.model.run_with_hooks(made.tokens(), fwd_hooks=[("blocks.1.attn.hook_pattern", look)])
    counts, finished = held[0]
    assert finished == {0} and counts[0] == 0 and counts[1] > 0
    assert all(layer.pattern is None and not layer.maps for layer in recorder._layers.values())


def counted(monkeypatch) -> list[list[int]]:
    """The layers that are taken together, as a recorder asks for them."""
    asked: list[list[int]] = []
    numbers_of_layers = tl_norms.hooks.numbers_of_layers

    def count(plan, activations, numbers, **options):
        asked.append(list(numbers))
        return numbers_of_layers(plan, activations, numbers, **options)

    monkeypatch.setattr("tl_norms.hooks.numbers_of_layers", count)
    return asked


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_blocks_of_short_texts_are_taken_at_once(name, kind, monkeypatch):
    made = tiny.make(name, kind)
    expected = tl_norms.block_norms(made.cache())
    asked = counted(monkeypatch)
    seen = []
    for sizes in ({}, {"held": 1}, {"copied": 1}):
        cut = dataclasses.replace(pieces(torch.device("cpu")), **sizes)
        for module in ("hooks", "joined_layers"):
            monkeypatch.setattr(f"tl_norms.{module}.pieces", lambda device, cut=cut: cut)
        recorder = tl_norms.NormRecorder(made.model)
        with torch.no_grad(), recorder:
            made.model(made.tokens())
            assert not recorder._held and not any(recorder._tensors.values()), "the last block takes all that wait"
        assert equal(recorder.norms, expected)
        seen.append([asked.pop(0) for _ in list(asked)])
    assert seen == [[[0, 1]], [[0], [1]], [[0], [1]]]


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_what_waits_is_taken_when_it_is_asked_for(name, kind):
    """In the middle of a run, and where the last block has not run; each layer's numbers are given once, in order."""
    made = tiny.make(name, kind)
    cache = made.cache()
    calls, early = [], []

    def keep(norms):
        calls.append(norms.layers)
        return norms[norms.scopes[-1]]

    recorder = tl_norms.NormRecorder(made.model, keep=keep)

    def look(tensor, hook):
        early.append(sorted(recorder.kept))

    with torch.no_grad(), recorder:
        made.model.run_with_hooks(made.tokens(), fwd_hooks=[("blocks.1.attn.hook_pattern", look)])
    assert early == [[0]] and calls == [(0,), (1,)]
    expected = tl_norms.block_norms(cache)
    for layer in expected.layers:
        assert same(recorder.kept[layer], expected[expected.scopes[-1]][layer : layer + 1])

    partial = tl_norms.NormRecorder(made.model, keep=keep)
    for hook_name, listener in partial.fwd_hooks:
        if not hook_name.startswith("blocks.1."):
            made.model.add_hook(hook_name, listener)
    with torch.no_grad():
        made.model(made.tokens())
    made.model.reset_hooks()
    assert partial._held and calls == [(0,), (1,)]
    assert sorted(partial.kept) == [0] and not partial._held


def test_memory_that_is_written_to_after_a_block_has_run():
    """A hook changes what it is given in place, which is what the block has written: it was what it was."""
    made = tiny.make("bert", tiny.KINDS[0])
    read = []

    def write(tensor, hook):
        tensor[:, 0] = 7.0

    if not {"blocks.0.mlp.hook_in", "blocks.1.hook_in"} <= set(made.model.hook_dict):
        pytest.skip("this TransformerLens has no such hooks")
    hooks = [("blocks.0.mlp.hook_in", write), ("blocks.1.hook_in", lambda tensor, hook: read.append(tensor.clone()))]
    recorder = tl_norms.NormRecorder(made.model)
    with torch.no_grad(), recorder:
        made.model.run_with_hooks(made.tokens(), fwd_hooks=hooks)
    cache = made.cache()
    plain = tl_norms.block_norms(cache)
    assert same(recorder.norms["attn_res_ln", 0], plain["attn_res_ln", 0])
    if not torch.allclose(read[0], cache["blocks.1.hook_in"]):  # older versions hand a copy to such a hook
        assert not same(recorder.norms["attn_res_ln", 1], plain["attn_res_ln", 1])


def test_an_error_of_one_of_the_blocks_that_wait_names_it_and_keeps_those_before():
    made = tiny.make("gpt2", tiny.KINDS[0])
    recorder = tl_norms.NormRecorder(made.model, keep=lambda norms: norms.layers)
    edit = ("blocks.1.attn.hook_z", lambda tensor, hook: tensor * 0)
    hooks = [edit, *recorder.fwd_hooks]
    with torch.no_grad(), pytest.raises(tl_norms.DecompositionError, match="layer 1, scope 'attn'"):
        made.model.run_with_hooks(made.tokens(), fwd_hooks=hooks)
    made.model.reset_hooks()
    assert recorder.kept == {0: (0,)}


def test_weights_that_change_between_runs_of_one_recorder():
    made = tiny.make("bert", tiny.KINDS[0])
    recorder = tl_norms.NormRecorder(made.model)
    own = [parameter.detach().clone() for parameter in made.model.parameters()]
    with torch.no_grad():
        try:
            for _ in range(2):
                recorder.reset()
                with recorder:
                    made.model(made.tokens())
                assert equal(recorder.norms, tl_norms.block_norms(made.cache()))
                for parameter in made.model.parameters():
                    parameter.mul_(1.0001)
        finally:  # the model is shared with other tests
            for parameter, kept in zip(made.model.parameters(), own, strict=True):
                parameter.copy_(kept)
