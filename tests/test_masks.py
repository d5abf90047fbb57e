"""Padded batches: real positions come out as without padding, padded ones as zero."""

import math

import pytest
import torch
from tiny import CASES, FAMILIES, make, same
from transformer_lens import ActivationCache

import tl_norms

SCOPES = ("attn", "attn_res", "attn_res_ln")
PADDED = 3
LIMIT = 5e-6  # two forward passes, rotary angles at other positions


def padded_run(tiny, side):
    """A batch whose second text is shorter: its cache, its mask, and both texts alone."""
    tokens = tiny.tokens()
    n = tokens.shape[1]
    real = slice(0, n - PADDED) if side == "right" else slice(PADDED, n)
    short = tokens[1:, : n - PADDED]
    batch, mask = tokens.clone(), torch.zeros_like(tokens)
    batch[1], mask[0], mask[1, real] = 0, 1, 1
    batch[1, real] = short[0]
    options = {}
    if side == "left" and tiny.kind == "bridge" and not tiny.family.name.startswith("roberta"):
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return tiny.cache(batch, mask=mask, **options), mask, real, [tiny.cache(tokens[:1]), tiny.cache(short)]


@pytest.fixture(params=[(*case, side) for case in CASES for side in ("left", "right")], ids=str)
def run(request):
    name, kind, side = request.param
    # a padded query of Llama sees no key: in float64 Hugging Face turns that into NaN, for all layers after
    tiny = make(name, kind, torch.float32 if FAMILIES[name].rms else torch.float64)
    if side == "left" and kind == "hooked" and tiny.family.post_norm:
        pytest.skip("HookedEncoder takes no positions: a text padded on the left is another text to it")
    return tiny, *padded_run(tiny, side)


def test_real_positions_are_those_of_the_text_alone(run):
    tiny, cache, mask, real, alone = run
    padded = tl_norms.block_norms(cache, SCOPES, mask=mask)
    for row, where in ((0, slice(None)), (1, real)):
        single = tl_norms.block_norms(alone[row], SCOPES)
        for scope in SCOPES:
            found = padded[scope][:, row, where, where]
            assert (found - single[scope][:, 0]).abs().max() < LIMIT * single[scope].max()
            assert (padded.mixing_ratio(scope)[:, row, where] - single.mixing_ratio(scope)[:, 0]).abs().max() < LIMIT
        assert (padded.value_norms[:, row][..., where] - single.value_norms[:, 0]).abs().max() < LIMIT
        assert (padded.head_norms[:, row][..., where, where] - single.head_norms[:, 0]).abs().max() < LIMIT
        assert (padded.attention[:, row, where, where] - single.attention[:, 0]).abs().max() < LIMIT
        residual = padded.attention_residual[:, row, where, where]
        assert (residual - single.attention_residual[:, 0]).abs().max() < LIMIT
        for error in padded.error.values():
            assert float(error.max()) < 1e-6


def test_padding_is_zero_everywhere(run):
    tiny, cache, mask, _, _ = run
    padding = ~mask.bool()
    norms = tl_norms.block_norms(cache, SCOPES, mask=mask)
    for scope in SCOPES:
        assert not norms[scope][:, padding].any() and not norms[scope].transpose(-1, -2)[:, padding].any()
        assert not norms.mixing_ratio(scope)[:, padding].any()
        parts = tl_norms.decompose(cache, 0, scope, mask=mask)
        vectors = parts.vectors()
        assert not vectors[padding].any() and not vectors.transpose(1, 2)[padding].any()
        assert not parts.total()[padding].any() and not parts.remainder[padding].any()
        assert not parts.norms()[padding].any() and not parts.mixing_ratio()[padding].any()
        assert torch.allclose(parts.vectors(query=0), vectors[:, :1], rtol=0, atol=1e-6)
    for square in (norms.attention, norms.attention_residual):
        assert not square[:, padding].any() and not square.transpose(-1, -2)[:, padding].any()
    assert not norms.head_norms.transpose(2, 3)[:, padding].any()
    assert not norms.value_norms.transpose(2, 3)[:, padding].any()
    assert not norms.attention_mixing_ratio()[:, padding].any()


def test_fill_marks_padded_queries_and_nothing_else(run):
    _, cache, mask, _, _ = run
    padding = (~mask.bool()).expand(2, *mask.shape)
    norms = tl_norms.block_norms(cache, mask=mask)
    plain, filled = norms.mixing_ratio("attn_res"), norms.mixing_ratio("attn_res", fill=math.nan)
    assert same(filled.isnan(), padding) and same(filled[~padding], plain[~padding])
    assert (norms.mixing_ratio("attn", fill=-1.0)[padding] == -1).all()
    assert same(norms.attention_mixing_ratio(fill=math.nan).isnan(), padding)


def test_nan_at_padded_positions_does_no_harm(run):
    """Padded rows may hold anything: NaN there must not reach one number."""
    _, cache, mask, _, _ = run
    padding = ~mask.bool()
    poisoned = {}
    for name, value in cache.cache_dict.items():
        if value.is_floating_point() and value.shape[:2] == mask.shape:
            value = value.clone()
            value[padding] = math.nan
        elif name.endswith("hook_pattern"):
            value = value.transpose(1, 2).clone()
            value[padding] = math.nan
            value = value.transpose(1, 2)
        poisoned[name] = value
    dirty = ActivationCache(poisoned, cache.model)
    clean, norms = (tl_norms.block_norms(c, SCOPES, mask=mask) for c in (cache, dirty))
    for scope in SCOPES:
        assert same(norms[scope], clean[scope])
        assert same(norms.mixing_ratio(scope), clean.mixing_ratio(scope))
        assert same(norms.error[scope], clean.error[scope])
        parts = tl_norms.decompose(dirty, 1, scope, mask=mask)
        assert parts.vectors().isfinite().all() and parts.total().isfinite().all()
    for quantity in ("value_norms", "head_norms", "attention", "attention_residual"):
        assert same(getattr(norms, quantity), getattr(clean, quantity)), quantity
    with pytest.raises(tl_norms.NonFiniteError, match="mask=attention_mask"):
        tl_norms.block_norms(dirty)


def test_traces_of_attention_to_padding_are_removed(run):
    """A mask of large negative numbers may leave a little weight on padded keys; they are no sources all the same."""
    _, cache, mask, _, _ = run
    hidden = ~mask.bool()[:, None, None, :]
    leaky = {
        name: value.masked_fill(hidden, 5e-5) if name.endswith("hook_pattern") else value
        for name, value in cache.cache_dict.items()
    }
    clean = tl_norms.block_norms(cache, SCOPES, mask=mask)
    norms = tl_norms.block_norms(ActivationCache(leaky, cache.model), SCOPES, mask=mask)
    assert norms.causal is clean.causal
    for scope in SCOPES:
        assert same(norms[scope], clean[scope])
    for quantity in ("attention", "attention_residual", "head_norms"):
        assert same(getattr(norms, quantity), getattr(clean, quantity)), quantity


def test_statistics_leave_padding_out(run):
    _, cache, mask, _, _ = run
    norms = tl_norms.block_norms(cache, mask=mask)
    frame = norms.to_dataframe()
    assert len(frame) == len(norms.scopes) * 2 * int(mask.sum())
    rows = frame[frame.scope == "attn_res"]
    assert {(b, q) for b, q in zip(rows.batch, rows["query"], strict=True)} == {
        tuple(p) for p in mask.nonzero().tolist()
    }
    ratios = norms.mixing_ratio("attn_res")
    mean = float(ratios[:, mask.bool()].mean())
    assert f"{mean:6.1%}" in repr(norms) and abs(mean - float(ratios.mean())) > 0.01
    assert rows.mixing_ratio.mean() == pytest.approx(mean, rel=1e-5)


def test_masks_of_bools_floats_and_ones(run):
    _, cache, mask, _, _ = run
    expected = tl_norms.block_norms(cache, mask=mask)
    for other in (mask.bool(), mask.float()):
        assert same(tl_norms.block_norms(cache, mask=other)["attn_res"], expected["attn_res"])
    assert same(tl_norms.extend_cache(cache, mask=mask)["norm_attn_res", 1], expected["attn_res"][1])
