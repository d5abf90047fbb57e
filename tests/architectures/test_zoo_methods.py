"""Methods and measures on a few architectures of each kind: they run, their rows are what they should be."""

import pytest
import torch

import tl_norms
from tl_norms import methods

from . import zoo
from .test_zoo import EXACT, cached

KINDS = [
    "GPT2LMHeadModel",
    "BertForMaskedLM",
    "GPTNeoXForCausalLM",  # parallel
    "BloomForCausalLM",
    "Gemma2ForCausalLM",  # norms behind each branch
    "MixtralForCausalLM",
    "DeepseekV3ForCausalLM",
    "Qwen3NextForCausalLM",  # gated attention, layers without any
    "T5ForConditionalGeneration@decoder",
    "BartForConditionalGeneration@encoder",
]
SOME = [name for name in EXACT if name in KINDS or name.partition("@")[0] in KINDS][:14]
OWN_ROWS = ("attention_rollout", "norm_rollout", "value_zeroing")


@pytest.mark.parametrize("name", SOME)
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
