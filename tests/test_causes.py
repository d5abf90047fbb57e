"""What an error says about its cause is what happened: hooks of this block or another one, switches, weights."""

import pytest
import torch
from tiny import KINDS, make

import tl_norms

KIND = KINDS[0]


def cached(made, place, change, names_filter=None):
    with made.model.hooks(fwd_hooks=[(place, change)]):
        return made.cache(names_filter=names_filter)


def message(cache, **options):
    with pytest.raises(tl_norms.DecompositionError) as error:
        tl_norms.block_norms(cache, "all", **options)
    return str(error.value)


def doubled_in_place(value, hook):
    value.mul_(2)


def moved_in_place(value, hook):
    value[:, 2] += torch.linspace(0, 1, value.shape[-1], dtype=value.dtype)


@pytest.mark.parametrize("change", [doubled_in_place, moved_in_place])
@pytest.mark.parametrize("family", ["gpt2", "llama_gqa"])
def test_a_hook_on_the_next_block_that_writes_in_place(family, change):
    made = make(family, KIND, fresh=True)
    said = message(cached(made, "blocks.1.hook_resid_pre", change), layers=0)
    assert "same memory" in said and "blocks.1." in said and "return a new tensor" in said
    assert ("2 times the sum" if change is doubled_in_place else "changed at positions") in said
    tl_norms.block_norms(cached(made, "blocks.1.hook_resid_pre", change), "all", layers=1)


def test_a_hook_on_the_next_block_that_returns_a_new_tensor_is_no_mistake():
    made = make("gpt2", KIND, fresh=True)
    cache = cached(made, "blocks.1.hook_resid_pre", lambda value, hook: value * 2)
    tl_norms.block_norms(cache, "all", layers=1)
    if KIND == "hooked":  # a bridge caches block 0's output under both names
        tl_norms.block_norms(cache, "all", layers=0)


def test_one_factor_everywhere_is_named():
    made = make("gpt2", KIND, fresh=True)
    said = message(cached(made, "blocks.0.hook_mlp_out", lambda value, hook: value * 1.5), layers=0)
    way = (
        "was added 1.5 times" if KIND == "bridge" else "1.5 times the sum of the parts"
    )  # hooked apart from its output
    assert way in said and "mlp" in said and "edits='replace'" in said
    said = message(cached(made, "blocks.0.hook_resid_post", lambda value, hook: value * 1.5), layers=0)
    assert "1.5 times the sum of the parts" in said and "edits='replace'" in said
    with torch.no_grad():
        cache = made.cache()
        for parameter in made.model.blocks[0].attn.parameters():
            parameter.mul_(3)
    assert "weights were scaled" in message(cache, layers=0)


def test_heads_that_the_cache_does_not_show():
    made = make("gpt2", KIND, fresh=True)

    def zeroed(value, hook):
        value = value.clone()
        value.view(*value.shape[:2], 4, -1)[:, :, 1] = 0
        return value

    names = tl_norms.required_hooks(made.model, "all")
    said = message(cached(made, "blocks.0.attn.hook_z", zeroed, names))
    assert "required_hooks(model, edits='replace')" in said and "single heads" in said
    names = tl_norms.required_hooks(made.model, "all", edits="replace")
    said = message(cached(made, "blocks.0.attn.hook_z", zeroed, names))
    assert "head 1, all positions: × 0" in said and "required_hooks" not in said


def test_anything_else_is_a_guess_and_says_so():
    made = make("gpt2", KIND, fresh=True)
    cache = made.cache()
    with torch.no_grad():
        for parameter in made.model.blocks[0].mlp.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    said = message(cache, layers=0)
    assert "Likely causes" in said and "was in training mode" in said
    made.model.train()
    assert "is in training mode" in message(cache, layers=0)


def test_heads_added_up_by_transformerlens():
    made = make("gpt2", KIND, fresh=True)
    made.model.set_use_attn_result(True)
    if KIND == "bridge":
        with pytest.raises(tl_norms.MissingActivationError, match=r"set_use_attn_result\(False\)"):
            tl_norms.block_norms(made.cache())
        with pytest.raises(tl_norms.RecorderError, match=r"set_use_attn_result\(False\)"):
            tl_norms.run_with_norms(made.model, made.tokens())
    else:
        assert float(tl_norms.block_norms(made.cache()).error["attn"].max()) < 1e-6
    made.model.set_use_attn_result(False)
    with pytest.raises(tl_norms.RecorderError, match="with recorder"):
        tl_norms.NormRecorder(made.model).norms  # noqa: B018
    tl_norms.block_norms(made.cache())


@pytest.mark.skipif("hooked" not in KINDS, reason="TransformerLens 4 has no such class")
def test_parallel_blocks_with_norms_behind_their_branches():
    from test_hooked_queries import made

    model = made({"parallel_attn_mlp": True, "use_normalization_before_and_after": True, "normalization_type": "RMS"})
    with torch.no_grad():
        cache = model.run_with_cache(torch.tensor([[5, 9, 30, 2]]))[1]
    for scope, error in tl_norms.block_norms(cache, "all").error.items():
        assert float(error.max()) < 1e-9, scope
