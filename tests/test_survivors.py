"""Faults that earlier tests did not see, each with the test that does."""

from types import SimpleNamespace

import pytest
import torch
from architectures import zoo
from tiny import CASES, KINDS, make
from transformer_lens import ActivationCache

import tl_norms
from tl_norms.linear.carry.pairs import is_causal
from tl_norms.metrics import cancellation, contextualization_change
from tl_norms.metrics.cancellation import _checked


def changed(cache, name: str, change) -> ActivationCache:
    entries = dict(cache.cache_dict)
    entries[name] = change(entries[name].clone())
    return ActivationCache(entries, cache.model)


@pytest.mark.parametrize("position", [0, 13, 29])
def test_one_wrong_position_of_thirty_is_enough(position):
    """The worst position counts, not the mean."""
    tiny = make("gpt2", KINDS[0], torch.float32)
    cache = tiny.cache(tiny.tokens(batch=1, positions=30))
    name = next(n for n in tl_norms.required_hooks(tiny.model, "attn") if n.endswith(("o.hook_out", "hook_attn_out")))

    def edit(value):
        value[:, position] *= 1.002
        return value

    tl_norms.block_norms(cache)
    with pytest.raises(tl_norms.DecompositionError):
        tl_norms.block_norms(changed(cache, name, edit))


def test_an_error_that_is_not_a_number_is_an_error(monkeypatch):
    cache = make("gpt2", KINDS[0]).cache()
    whole = tl_norms.block_norms(cache)
    lost = property(lambda self: self.own * float("nan"))
    monkeypatch.setattr("tl_norms.linear.joined.points.Point.total", lost)  # layers at once: they go one by one then
    assert torch.allclose(tl_norms.block_norms(cache)["attn_res"], whole["attn_res"], rtol=1e-9)
    monkeypatch.setattr("tl_norms.linear.carry.pairs.Sources.total", lost)
    with pytest.raises(tl_norms.DecompositionError, match="nan"):
        tl_norms.block_norms(cache)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head", range(4))
def test_a_head_zeroed_in_half_precision_is_seen(dtype, head):
    tiny = make("gpt2", KINDS[0], dtype)

    def zeroed(value, hook):
        value = value.clone()
        value.view(*value.shape[:2], 4, -1)[:, :, head] = 0
        return value

    tl_norms.block_norms(tiny.cache(), "all")
    with torch.no_grad(), tiny.model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", zeroed)]):
        cache = tiny.model.run_with_cache(tiny.tokens())[1]
    with pytest.raises(tl_norms.DecompositionError, match=f"head {head}"):
        tl_norms.block_norms(cache, "attn_res", layers=1)


def test_one_weight_above_the_diagonal_is_not_causal():
    for n, rows in ((5, 2), (7, 3), (6, 6)):
        for query in range(n):
            for key in range(query + 1, n):
                pattern = torch.ones(1, 2, n, n).tril()
                assert is_causal(pattern, rows)
                pattern[0, 1, query, key] = 1e-3
                assert not is_causal(pattern, rows), (n, rows, query, key)


def test_cancellation_knows_multipliers_of_residuals():
    """Granite: what the feed-forward adds is its output times the residual multiplier."""
    try:
        cache = zoo.cached(zoo.SPECS["GraniteForCausalLM"]).cache
    except (zoo.NotHere, ValueError, ImportError) as reason:
        pytest.skip(str(reason))
    found = cancellation(cache, layers=[0], leave_out=0)
    config = cache.model.original_model.config
    assert config.residual_multiplier != 1
    wrote = cache["blocks.0.mlp.out.hook_out"] * config.residual_multiplier
    added = cache["blocks.0.hook_out"] - wrote
    torch.testing.assert_close(found.output_norm[0], wrote.norm(dim=-1).mean(-1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.stream_norm[0], added.norm(dim=-1).mean(-1), rtol=1e-6, atol=1e-8)


def test_padded_positions_are_not_among_the_largest_outputs():
    tiny = make("gpt2", KINDS[0])
    tokens, mask = tiny.tokens(), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    cache = tiny.cache(tokens, mask=mask)
    name = next(n for n in tl_norms.required_hooks(tiny.model, "all", 0) if n.endswith(("mlp.out.hook_out", "mlp_out")))

    def huge(value):
        value[1, 4:, 3] = 1e6  # padding
        return value

    plain = cancellation(cache, mask=mask, layers=[0], leave_out=2)
    padded = cancellation(changed(cache, name, huge), mask=mask, layers=[0], leave_out=2)
    assert torch.equal(plain.left_out["without_large_outputs"], padded.left_out["without_large_outputs"])


def test_one_percent_of_the_dimensions_is_left_out():
    assert [_checked(None, width) for width in (50, 100, 199, 200, 768)] == [1, 1, 1, 2, 7]


def test_the_rank_correlation_of_two_pairs():
    before = torch.tensor([[[0.0, 0.0], [1.0, 2.0]]])
    same, turned = before.clone(), torch.tensor([[[0.0, 0.0], [2.0, 1.0]]])
    mask = torch.tensor([[False, True]])
    lower = dict(causal=False, mask=None)
    assert float(contextualization_change(before[:, 1:], same[:, 1:], **lower)) == pytest.approx(0, abs=1e-9)
    assert float(contextualization_change(before[:, 1:], turned[:, 1:], **lower)) == pytest.approx(2, abs=1e-9)
    assert mask.sum() == 1


@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "T5ForConditionalGeneration"])
def test_an_encoder_decoder_without_a_batch_axis_and_with_masks(name):
    try:
        made = zoo.cached(zoo.SPECS[name])
    except (zoo.NotHere, ValueError, ImportError) as reason:
        pytest.skip(str(reason))
    source, target = zoo.tokens(batch=1), zoo.tokens(batch=1)[:, :5]
    with torch.no_grad():
        whole = made.bridge.run_with_cache(source, decoder_input=target)[1]
    single = ActivationCache({k: v[0] for k, v in whole.items()}, made.bridge, has_batch_dim=False)
    masks = SimpleNamespace(own=torch.ones(1, 5), source=torch.ones(1, 7))
    batched = tl_norms.block_norms(whole, "all", mask=masks.own, source_mask=masks.source)
    alone = tl_norms.block_norms(single, "all", mask=masks.own[0], source_mask=masks.source[0])
    for scope in batched.scopes:
        torch.testing.assert_close(alone[scope], batched[scope][:, 0], rtol=1e-12, atol=1e-12)
        assert torch.equal(alone.pairs(scope), batched.pairs(scope)[0])
    crossed = tl_norms.cross_norms(single, mask=masks.own[0], source_mask=masks.source[0])
    assert crossed.norms.shape == (2, 5, 7)


def test_the_cases_are_there():
    assert {"gpt2", "bert"} <= {name for name, _ in CASES}
