"""Methods by name against their formulas, written down from Hugging Face's own weights and activations."""

import pytest
import reference
import torch
from tiny import CASES, make

from tl_norms import methods
from tl_norms.errors import MapError

SOME = [case for case in CASES if case[0] in ("bert", "gpt2", "llama_gqa")]


@pytest.fixture(params=SOME, ids=str)
def run(request):
    tiny = make(*request.param)
    return tiny, tiny.cache(), reference.analyse(tiny.hf, tiny.tokens())


def products(maps):
    found = [maps[0]]
    for step in maps[1:]:
        found.append(step @ found[-1])
    return torch.stack(found)


def check(found, maps, tiny, rows=True):
    limit = 1e-5 if tiny.family.rms else 1e-9  # transformers computes RMS norms and rotary softmax in float32
    assert found.maps.shape == found.rollout.shape == maps.shape
    assert (found.maps - maps).abs().max() < limit * maps.abs().max()
    whole = products(maps)
    assert (found.rollout - whole).abs().max() < limit * whole.abs().max()
    if rows:
        torch.testing.assert_close(found.rollout.sum(-1), torch.ones(maps.shape[:-1], dtype=torch.float64))


def test_attention_rollout(run):
    tiny, cache, layers = run
    maps = torch.stack([(layer.attention + torch.eye(layer.attention.shape[-1])) / 2 for layer in layers])
    found = methods.attention_rollout(cache)
    check(found, maps, tiny)
    assert found.layers == (0, 1) and found.scope is None


def test_attention_flow(run):
    """Of two layers: every path goes over one position in between, so a flow is a sum of minima."""
    tiny, cache, layers = run
    first, second = ((layer.attention + torch.eye(layer.attention.shape[-1])) / 2 for layer in layers)
    flows = torch.minimum(second[..., :, :, None], first[..., None, :, :]).sum(-2)
    found = methods.attention_flow(cache)
    limit = 1e-5 if tiny.family.rms else 1e-6
    assert (found.rollout[0] - first).abs().max() < limit
    assert (found.rollout[1] - flows / flows.sum(-1, keepdim=True)).abs().max() < limit


@pytest.mark.parametrize("normalize", [True, False])
def test_norm_rollout(run, normalize):
    tiny, cache, layers = run
    scope = "attn_res_ln" if tiny.family.post_norm else "attn_res"
    maps = torch.stack([layer.norms(scope) for layer in layers])
    maps = maps / maps.sum(-1, keepdim=True) if normalize else maps
    found = methods.norm_rollout(cache, normalize=normalize)
    check(found, maps, tiny, rows=normalize)
    assert found.scope == scope


def test_alti(run):
    tiny, cache, layers = run
    scope = "attn_res_ln" if tiny.family.post_norm else "attn_res"
    maps = []
    for layer in layers:
        total = layer.total(scope)[:, :, None]
        near = (total.abs().sum(-1) - (total - layer.vectors[scope]).abs().sum(-1)).clamp_min(0)
        maps.append(near / near.sum(-1, keepdim=True))
    found = methods.alti(cache)
    check(found, torch.stack(maps), tiny)
    assert "alti of" in repr(found) and found.scope == scope


def test_padding_is_refused_by_name():
    tiny = make("gpt2", SOME[0][1])
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    cache = tiny.cache(mask=mask)
    with pytest.raises(MapError, match="padding"):
        methods.norm_rollout(cache, mask=mask)
