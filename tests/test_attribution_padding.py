"""Attribution of padded batches: real positions get what they get in a run of their text alone, padding nothing."""

import pytest
import torch
from test_masks import padded_run
from tiny import CASES, FAMILIES, make

import tl_norms

LIMIT = 2e-5  # of two forward passes in float32, rotary angles at other positions


@pytest.fixture(params=[(*case, side) for case in CASES for side in ("left", "right")], ids=str)
def run(request):
    name, kind, side = request.param
    # a padded query of Llama sees no key: in float64 Hugging Face turns that into NaN, for all layers after
    made = make(name, kind, torch.float32 if FAMILIES[name].rms else torch.float64)
    if side == "left" and kind == "hooked" and made.family.post_norm:
        pytest.skip("HookedEncoder takes no positions: a text padded on the left is another text to it")
    return made, *padded_run(made, side)


@pytest.mark.parametrize("attention", ["held", "integrated"])
def test_real_positions_are_those_of_the_text_alone(run, attention):
    made, cache, mask, real, alone = run
    limit = LIMIT if made.family.rms else 1e-9
    target = tl_norms.logit(7) - 2 * tl_norms.logit(11)
    padded = tl_norms.attribute(cache, target, mask=mask, attention=attention)
    assert float(padded.error.max()) < limit
    for row, where in ((0, slice(None)), (1, real)):
        single = tl_norms.attribute(alone[row], target, attention=attention)
        scale = float(single.stream.abs().max())
        assert (padded.value[row] - single.value[0]).abs() < limit * scale
        assert (padded.stream[:, row, where] - single.stream[:, 0]).abs().max() < limit * scale
        assert (padded.heads[:, row] - single.heads[:, 0]).abs().max() < limit * scale
        for layer in padded.layers:
            edges = padded.edges(layer)[row][..., where, where]
            assert (edges - single.edges(layer)[0]).abs().max() < limit * scale
        if attention == "integrated":
            for name in ("queries", "keys", "values"):
                found, expected = getattr(padded, name)[:, row, where], getattr(single, name)[:, 0]
                assert (found - expected).abs().max() < limit * scale
            for layer in padded.layers:
                logits = padded.logits(layer)[row][..., where, where]
                assert (logits - single.logits(layer)[0]).abs().max() < limit * scale
            assert all(nodes > 1 for nodes in padded.nodes)
    padding = ~mask.bool()
    assert not padded.stream[:, padding].any() and not padded.tokens[padding].any()


@pytest.mark.parametrize("attention", ["held", "integrated"])
def test_direct_attribution_of_padded_batches(run, attention):
    made, cache, mask, real, alone = run
    limit = LIMIT if made.family.rms else 1e-9
    padded = tl_norms.direct_attribution(cache, tl_norms.logit(7), mask=mask, attention=attention)
    for row, where in ((0, slice(None)), (1, real)):
        single = tl_norms.direct_attribution(alone[row], tl_norms.logit(7), attention=attention)
        scale = float(single.heads.abs().max().clamp_min(single.value.abs().max()))
        assert (padded.heads[:, row][..., where] - single.heads[:, 0]).abs().max() < limit * scale
