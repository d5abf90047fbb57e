"""Norms during the forward pass: the numbers of a cache, of the run as it was, and nothing left behind."""

import pytest
import tiny
import torch
from tiny import same

import tl_norms

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
