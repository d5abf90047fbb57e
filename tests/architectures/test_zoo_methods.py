"""Methods on every architecture, measures on a few of each kind: they run, their rows are what they should be."""

import pytest
import torch

import tl_norms
from tl_norms import methods
from tl_norms.names import attention_block

from . import zoo
from .test_attribution import WHOLE
from .test_zoo import EXACT, cached

SOME = [name for name in EXACT if zoo.is_of_each_kind(name)][:14]
OWN_ROWS = ("attention_rollout", "norm_rollout", "value_zeroing")


@pytest.mark.parametrize("name", zoo.others_slow(EXACT))
def test_methods_run_and_rows_sum_to_one(name):
    spec, made = zoo.SPECS[name], cached(name)
    crossed = "cross" in tl_norms.scopes(made.bridge, stack=spec.stack)[-1]
    for method in OWN_ROWS:
        found = getattr(methods, method)(made.cache, stack=spec.stack)
        rows = found.rollout.sum(-1)
        torch.testing.assert_close(rows.double(), torch.ones_like(rows).double(), rtol=0, atol=1e-5)
        assert found.maps.shape == found.rollout.shape and float(found.maps.min()) >= 0
    skipped = methods.globenc(made.cache, stack=spec.stack)
    assert skipped.rollout.isfinite().all() and skipped.maps.shape[-1] == skipped.maps.shape[-2]
    flow = methods.information_flow(made.cache, stack=spec.stack)
    sums = flow.maps.sum(-1)
    assert bool((sums < 1 + 1e-9).all()) and (crossed or bool((sums > 1 - 1e-9).all()))
    assert flow.edges and bool((flow.heads >= 0).all())
    nearer = methods.alti(made.cache, stack=spec.stack, normalize=False)  # a row may be zero in a random model
    assert nearer.maps.isfinite().all() and float(nearer.maps.min()) >= 0
    capacities = methods.attention_flow(made.cache, stack=spec.stack)
    torch.testing.assert_close(capacities.rollout[0], capacities.maps[0], rtol=0, atol=1e-6)  # one layer: its own


@pytest.mark.parametrize("name", zoo.others_slow(WHOLE))
def test_methods_of_the_whole_model(name):
    """DecompX against the attribution; ALTI-Logit's last layer is its heads' direct logits."""
    spec, made = zoo.SPECS[name], cached(name)
    target, tolerance = tl_norms.logit(3, at=1), min(5 * spec.limit(torch.float64), zoo.FLOAT32)
    credit = tl_norms.attribute(made.cache, target)
    expected = [credit.tokens] if credit.source_tokens is None else [credit.tokens, credit.source_tokens]
    expected = torch.cat(expected, dim=-1)
    plain, found = (methods.decompx(made.cache, target, first_bias=one) for one in ("remainder", "sources"))
    size = torch.maximum(expected.abs().max(), credit.value.abs().max())
    assert float((plain.scores - expected).abs().max() / size) < 10 * tolerance
    assert float(found.error.max()) < tolerance and found.rollout.isfinite().all()
    left = found.scores.sum(-1) + found.offset - found.value
    assert float(left.abs().max() / size) < 10 * tolerance
    try:
        below = methods.alti_logit(made.cache, target)
    except tl_norms.MapError:  # a random model may have a position that no source brings nearer
        with pytest.raises(tl_norms.MapError, match="normalize=False"):
            methods.alti(made.cache, attention_block(tl_norms.scopes(made.bridge), normed=False))
        return
    direct = tl_norms.direct_attribution(made.cache, target)
    assert below.isfinite().all()
    torch.testing.assert_close(below.sum(-1), direct.heads.sum((-1, -2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Qwen3NextForCausalLM", "BambaForCausalLM"])
def test_layers_without_attention_are_left_out_with_their_size(name):
    made = cached(name)
    without = [number for number in range(made.bridge.cfg.n_layers)]
    found = methods.attention_rollout(made.cache)
    without = sorted(set(without) - set(found.layers))
    assert without and sorted(found.unattended) == without
    for number, size in found.unattended.items():
        before, after = (made.cache[f"blocks.{number}.hook_{side}"] for side in ("in", "out"))
        wrote = (after - before).norm(dim=-1).mean() / after.norm(dim=-1).mean()
        assert size == pytest.approx(float(wrote), rel=1e-6) and size > 0
    assert "without attention, left out" in repr(found)
    names = [hook for hook in made.cache.cache_dict if "pattern" in hook or "attn" in hook]
    part = made.bridge.run_with_cache(zoo.tokens(), names_filter=names)[1]  # no stream: it is not known
    assert all(size != size for size in methods.attention_rollout(part).unattended.values())


@pytest.mark.parametrize("name", SOME)
def test_shares_add_up_under_every_rule_and_l1_is_at_least_l2(name):
    spec, made = zoo.SPECS[name], cached(name)
    for ff in ("ig", "half", "gate", "drop"):
        norms = tl_norms.block_norms(made.cache, "all", stack=spec.stack, measure="share", ff=ff)
        for scope in norms.scopes:
            whole = norms[scope].sum(-1) + norms.remainder(scope)
            assert float((whole - 1).abs().max()) < 1e-6, (scope, ff)
    lengths = tl_norms.block_norms(made.cache, "all", stack=spec.stack)
    sums = tl_norms.block_norms(made.cache, "all", stack=spec.stack, measure="l1")
    width = tl_norms.decompose(made.cache, lengths.layers[0], "attn", stack=spec.stack).total().shape[-1]
    for scope in sums.scopes:
        assert bool((sums[scope] >= lengths[scope] * (1 - 1e-6)).all())
        assert bool((sums[scope] <= lengths[scope] * width**0.5 * (1 + 1e-6)).all())
