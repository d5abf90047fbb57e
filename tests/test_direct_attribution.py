"""direct_attribution: edited runs, several targets, targets of earlier streams; hooks that edited runs need."""

import pytest
import tiny
import torch

import tl_norms
from tl_norms import attribute, direct_attribution, direction, logit
from tl_norms.targets import TargetError

TARGET = logit(7) - 2 * logit(11, at=3)
EDITED = ["blocks.1.hook_in", "blocks.0.mlp.hook_out", "blocks.0.attn.o.hook_out", "blocks.0.attn.o.hook_in"]
bridge = pytest.mark.skipif("bridge" not in tiny.KINDS, reason="this TransformerLens has no bridge")


def change(tensor, hook):
    tensor = tensor.clone()
    tensor[:, 2] = 0
    tensor[:, 4] = tensor[:, 4] * 0.5
    tensor[:, 6] = tensor[:, 6] + 0.3 * tiny.waves(tuple(tensor.shape[2:]), 0.7)  # a constant would be centred away
    return tensor


def whole(found):
    """Everything added up."""
    return found.embed + found.heads.sum((0, -1, -2)) + found.ffn.sum(0) + found.offset


@bridge
@pytest.mark.parametrize("attention", ["held", "integrated"])
@pytest.mark.parametrize("mode", ["replace", "add"])
@pytest.mark.parametrize("hook", EDITED)
def test_edited_runs_add_up(hook, mode, attention):
    made = tiny.make("gpt2", "bridge")
    with made.model.hooks(fwd_hooks=[(hook, change)]):
        cache = made.cache()
    with pytest.raises(tl_norms.DecompositionError):
        direct_attribution(cache, TARGET)
    found = direct_attribution(cache, TARGET, edits=mode, attention=attention)
    torch.testing.assert_close(whole(found), found.value, rtol=1e-10, atol=1e-10)
    assert float(found.error) < 1e-10
    assert {position for edit in found.edits for _, position in edit.positions} == {2, 4, 6}


@bridge
def test_a_scaled_attention_output_scales_its_heads():
    """By a half at the target's position: so are the direct logits of every head there."""
    made = tiny.make("gpt2", "bridge")
    with made.model.hooks(fwd_hooks=[("blocks.1.attn.o.hook_out", lambda tensor, hook: tensor * 0.5)]):
        cache = made.cache()
    found = direct_attribution(cache, logit(7), edits="replace")
    last = cache["blocks.1.hook_out"][:, -1]
    norm, row = made.hf.transformer.ln_f, made.hf.lm_head.weight[7]
    scale = ((last - last.mean(-1, keepdim=True)).pow(2).mean(-1) + norm.eps).sqrt()
    values, pattern = tl_norms.value_vectors(cache, 1, check=False), cache["pattern", 1]
    for h in range(tiny.N_HEADS):
        wrote = 0.5 * pattern[:, h, -1, :, None] * values[:, h]
        along = ((wrote - wrote.mean(-1, keepdim=True)) / scale[:, None, None] * norm.weight) @ row
        torch.testing.assert_close(found.heads[1, :, h], along.detach(), rtol=1e-9, atol=1e-10)


@bridge
@pytest.mark.parametrize("hook", [*EDITED, "blocks.0.attn.v.hook_out"])
def test_required_hooks_are_enough_for_edited_runs(hook):
    made = tiny.make("gpt2", "bridge")
    names = tl_norms.required_hooks(made.model, target=TARGET, edits="replace")
    assert set(tl_norms.required_hooks(made.model, target=TARGET)) < set(names) < set(made.cache().cache_dict)
    with made.model.hooks(fwd_hooks=[(hook, change)]):
        full, part = made.cache(), made.cache(names_filter=names)
    expected, found = attribute(full, TARGET, edits="replace"), attribute(part, TARGET, edits="replace")
    assert found.edits and found.edits == expected.edits
    torch.testing.assert_close(found.stream, expected.stream)
    propagated = tl_norms.propagate(part, edits="replace")
    torch.testing.assert_close(propagated.norms, tl_norms.propagate(full, edits="replace").norms)


@bridge
def test_required_hooks_of_edited_blocks():
    made = tiny.make("gpt2", "bridge")
    scopes = tl_norms.scopes(made.model)
    names = tl_norms.required_hooks(made.model, scopes[-1], edits="add")
    assert set(tl_norms.required_hooks(made.model, scopes[-1])) < set(names)
    with made.model.hooks(fwd_hooks=[("blocks.0.mlp.hook_out", change)]):
        full, part = made.cache(), made.cache(names_filter=names)
    expected, found = (tl_norms.block_norms(cache, scopes[-1], edits="add") for cache in (full, part))
    assert found.edits and found.edits == expected.edits
    torch.testing.assert_close(found[scopes[-1]], expected[scopes[-1]])
    with pytest.raises(tl_norms.UnknownOptionError, match="edits"):
        tl_norms.required_hooks(made.model, edits="keep")


def test_several_targets_and_no_batch_axis():
    made = tiny.make("llama_gqa", tiny.KINDS[0])
    one = made.cache(made.tokens()[:1])
    many = direct_attribution(one, [logit(7), logit(11, at=3), TARGET])
    torch.testing.assert_close(many.heads[0] - 2 * many.heads[1], many.heads[2])
    torch.testing.assert_close(many.ffn[0] - 2 * many.ffn[1], many.ffn[2])
    assert many.value.shape == (3, 1) and many.target_name[2] == TARGET.name
    one.remove_batch_dim()
    found = direct_attribution(one, TARGET)
    assert found.heads.shape == (tiny.N_LAYERS, tiny.N_HEADS, 7, 7)[:2] + (7,) and found.value.shape == ()
    torch.testing.assert_close(found.heads, many.heads[2][:, 0])


def test_a_direction_of_an_earlier_stream_is_written_by_the_layers_before_it():
    cache = tiny.make("gpt2", tiny.KINDS[0]).cache()
    vector = tiny.waves((tiny.D_MODEL,), 0.3)
    found = direct_attribution(cache, direction(vector, layer=1, at=4))
    torch.testing.assert_close(whole(found), found.value)
    torch.testing.assert_close(found.embed, cache["resid_pre", 0][:, 4] @ vector)
    torch.testing.assert_close(found.ffn[0], cache["mlp_out", 0][:, 4] @ vector)
    assert not found.heads[1].any() and not found.ffn[1].any()


def test_in_post_norm_models_only_the_last_layer_writes():
    cache = tiny.make("bert", tiny.KINDS[0]).cache()
    found = direct_attribution(cache, logit(7))
    assert not found.heads[0].any() and found.heads[1].any() and not found.ffn[0].any()
    torch.testing.assert_close(whole(found), found.value)
    vector = tiny.waves((tiny.D_MODEL,), 0.3)
    torch.testing.assert_close(
        direct_attribution(cache, direction(vector, layer=1)).embed, cache["resid_pre", 1][:, -1] @ vector
    )
    with pytest.raises(TargetError, match="entering layer 0, but in a post-norm model only the last layer"):
        direct_attribution(cache, direction(vector, layer=0))
