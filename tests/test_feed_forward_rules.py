"""The option `ff` of the public functions: each rule against the derivative of its definition, and what is dropped."""

import feed_forward_reference as ref
import pytest
import torch
from torch.nn import functional as F

import tl_norms

pytestmark = pytest.mark.skipif(ref.build_bridge_from_module is None, reason="TransformerLens 2 has no bridge")
RULES = ["ig", "half", "gate", "drop"]


def relative(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def held(mlp, rule):
    """The gated feed-forward of Llama with all that a rule holds detached, biases moving as a source of their own."""
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def run(x):
        u, w = gate(x), up(x)
        act, secant = F.silu(u).detach(), (F.silu(u) / u).detach()
        neurons = {"half": (secant * u * w.detach() + act * w) / 2, "gate": act * w}[rule]
        return F.linear(neurons, down.weight)

    return run


@pytest.mark.parametrize("rule", ["half", "gate"])
def test_a_gated_feed_forward_passes_what_the_derivative_of_the_rule_says(rule):
    model, ids = ref.tiny("llama"), ref.tokens()
    cache = ref.cached(ref.bridged(model), ids)
    for layer, block in enumerate(ref.dense_blocks(model, ids)):
        vectors, rest = ref.dense_scopes(block, "player")["attn_res_ln"]
        full = (vectors.sum(2) + rest).detach()
        moved = [torch.func.jvp(held(block.mlp, rule), (full,), (v.contiguous(),))[1] for v in vectors.unbind(2)]
        parts = tl_norms.decompose(cache, layer, "attn_res_ln_ff", ff=rule)
        assert relative(parts.vectors(), torch.stack(moved, 2).detach()) < 1e-10
        assert relative(parts.vectors().sum(2) + parts.remainder, block.mlp(full).detach()) < 1e-10
        norms = tl_norms.block_norms(cache, "attn_res_ln_ff", layers=layer, ff=rule)
        assert relative(norms["attn_res_ln_ff"][0], torch.stack(moved, 2).detach().norm(dim=-1)) < 1e-10
        assert relative(parts.vectors(), tl_norms.decompose(cache, layer, "attn_res_ln_ff").vectors()) > 1e-2


@pytest.mark.parametrize("layout", ref.LAYOUTS)
@pytest.mark.parametrize("bias", ["player", "fixed"])
def test_what_is_dropped_belongs_to_the_remainder(layout, bias):
    model, ids = ref.tiny(layout), ref.tokens()
    cache = ref.cached(ref.bridged(model), ids)
    for layer, block in enumerate(ref.dense_blocks(model, ids)):
        scopes = ref.dense_scopes(block, "player")
        inner = scopes["attn_res_ln"]
        written = block.mlp(inner[0].sum(2) + inner[1]).detach()
        bypassed = inner if layout == "bert" else scopes["attn_res"]
        expected = {
            "attn_res_ln_ff": (torch.zeros_like(inner[0]), written),
            "attn_res_ln_ff_res": (bypassed[0], bypassed[1] + written),
        }
        if layout == "bert":
            expected["attn_res_ln_ff_res_ln"] = ref.dense_norm(block.last_norm, *expected["attn_res_ln_ff_res"])
        norms = tl_norms.block_norms(cache, list(expected), layers=layer, ff="drop", bias=bias)
        for scope, (vectors, rest) in expected.items():
            parts = tl_norms.decompose(cache, layer, scope, ff="drop", bias=bias)
            torch.testing.assert_close(parts.vectors(), vectors.detach(), rtol=0, atol=1e-10)
            assert relative(parts.remainder, rest) < 1e-10
            torch.testing.assert_close(norms[scope][0], vectors.detach().norm(dim=-1), rtol=0, atol=1e-10)
        assert not norms.mixing_ratio("attn_res_ln_ff").any()


@pytest.mark.parametrize("layout", ["bert", "gpt2"])
def test_without_a_gate_three_rules_are_one(layout):
    cache = ref.cached(ref.bridged(ref.tiny(layout)), ref.tokens())
    plain = tl_norms.ffn_maps(cache)
    for rule in ("half", "gate"):
        assert torch.equal(tl_norms.ffn_maps(cache, ff=rule)["attn_res_ln_ff_res"], plain["attn_res_ln_ff_res"])


def test_during_the_run_as_after_it():
    bridge, ids = ref.bridged(ref.tiny("llama")), ref.tokens()
    after = tl_norms.block_norms(ref.cached(bridge, ids), "all", ff="gate")
    with torch.no_grad():
        _, during = tl_norms.run_with_norms(bridge, ids, scopes="all", ff="gate")
    for scope in after.scopes:
        assert torch.equal(during[scope], after[scope])
