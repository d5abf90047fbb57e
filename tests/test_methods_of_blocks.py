"""GlobEnc, value zeroing, information flow and ALTI-Logit against their formulas, written down densely in float64."""

from dataclasses import replace

import feed_forward_reference as ref
import pytest
import torch

import tl_norms
from tl_norms import methods
from tl_norms.linear.pieces import pieces
from tl_norms.methods import zeroing

pytestmark = pytest.mark.skipif(ref.build_bridge_from_module is None, reason="TransformerLens 2 has no bridge")
CASES = [(layout, dtype) for layout in ref.LAYOUTS for dtype in (torch.float64, torch.float32)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def run(request):
    """A cache in the dtype, dense blocks in float64, and how far they may be apart."""
    layout, dtype = request.param
    model, ids = ref.tiny(layout, dtype), ref.tokens()
    cache = ref.cached(ref.bridged(model), ids)
    limit = 5e-5 if dtype == torch.float32 else 1e-5 if layout == "llama" else 1e-9  # Llama's norms are in float32
    return cache, ref.dense_blocks(model.double(), ids), limit


def products(maps):
    found = [maps[0]]
    for step in maps[1:]:
        found.append(step @ found[-1])
    return torch.stack(found)


def check(found, maps, limit):
    for one, wanted in ((found.maps, maps), (found.rollout, products(maps))):
        assert one.shape == wanted.shape
        assert float((one.double() - wanted).abs().max() / wanted.abs().max()) < limit


def attended(block, values):
    return torch.einsum("bhqk,bkhe,hed->bqd", block.pattern, values, block.w_o) + block.b_o


def onward(block, attention):
    """The block's output for what attention wrote, by the model's own modules."""
    middle = attention + block.stream
    if block.last_norm is None:
        return middle + block.mlp(block.norm(middle))
    inner = block.norm(middle)
    return block.last_norm(block.mlp(inner) + inner)


def test_globenc(run):
    cache, blocks, limit = run
    maps = []
    for block in blocks:
        vectors, rest = ref.dense_scopes(block, "player")["attn_res"]
        if block.last_norm is not None:
            vectors, rest = ref.dense_norm(block.norm, vectors, rest)
            written = block.mlp(vectors.sum(2) + rest)
            vectors, _ = ref.dense_norm(block.last_norm, vectors, rest + written)
        maps.append(vectors.norm(dim=-1).detach())
    found = methods.globenc(cache)
    check(found, torch.stack(maps), limit)
    eye = torch.eye(6, dtype=torch.float64)
    maps = torch.stack(maps) + eye
    check(methods.globenc(cache, add_identity=True, normalize=True), maps / maps.sum(-1, keepdim=True), limit)
    assert "globenc of" in repr(found)


@torch.no_grad()
def test_value_zeroing(run):
    cache, blocks, limit = run
    maps = []
    for block in blocks:
        real = onward(block, attended(block, block.values))
        assert float((real - block.output).abs().max()) < 1e-5 * float(real.abs().max())
        columns = []
        for key in range(block.values.shape[1]):
            values = block.values.clone()
            values[:, key] = 0
            columns.append(1 - torch.cosine_similarity(onward(block, attended(block, values)), real, dim=-1))
        maps.append(torch.stack(columns, -1))
    maps = torch.stack(maps)
    found = methods.value_zeroing(cache, normalize=False)
    assert float((found.maps - maps).abs().max() / maps.max()) < limit
    check(methods.value_zeroing(cache), maps / maps.sum(-1, keepdim=True), limit)
    if blocks[0].last_norm is None:
        assert not found.maps.triu(1).any()


def test_value_zeroing_does_not_depend_on_chunks(monkeypatch):
    cache = ref.cached(ref.bridged(ref.tiny("gpt2")), ref.tokens(n=9))
    whole = methods.value_zeroing(cache).maps
    small = replace(pieces(torch.device("cpu")), pair_vectors=1)
    monkeypatch.setattr(zeroing, "pieces", lambda device: small)
    torch.testing.assert_close(methods.value_zeroing(cache).maps, whole, rtol=0, atol=1e-12)


def test_value_zeroing_of_changed_weights_is_refused():
    bridge, ids = ref.bridged(ref.tiny("gpt2")), ref.tokens()
    cache = ref.cached(bridge, ids)
    with torch.no_grad():
        bridge.blocks[1].mlp.original_component.c_proj.bias += 1
    with pytest.raises(tl_norms.DecompositionError):
        methods.value_zeroing(cache)


def flow_reference(block, floor, least):
    """Shares of one block, part by part."""
    n_batch, n_heads, n, _ = block.pattern.shape
    attention = attended(block, block.values)
    middle = attention + block.stream
    heads = torch.zeros(n_batch, n_heads, n, n, dtype=torch.float64)
    bypass, ffn = torch.zeros(n_batch, n, dtype=torch.float64), torch.zeros(n_batch, n, dtype=torch.float64)
    entering = block.norm(middle)
    written, around = block.mlp(entering), middle if block.last_norm is None else entering

    def near(part, y):
        return max(floor, float(y.abs().sum() - (y - part).abs().sum()))

    def normalised(parts):
        parts = parts / parts.sum()
        parts = torch.where(parts < least, 0.0, parts)
        return parts / parts.sum()

    for b in range(n_batch):
        for i in range(n):
            y, parts = middle[b, i], []
            for h in range(n_heads):
                for j in range(n):
                    parts.append(near(block.pattern[b, h, i, j] * block.values[b, j, h] @ block.w_o[h], y))
            parts.append(near(block.stream[b, i], y))
            shares = normalised(torch.tensor(parts, dtype=torch.float64))
            heads[b, :, i], bypass[b, i] = shares[:-1].reshape(n_heads, n), shares[-1]
            y = (written + around)[b, i]
            pair = torch.tensor([near(written[b, i], y), near(around[b, i], y)], dtype=torch.float64)
            ffn[b, i] = normalised(pair)[0]
    return heads, bypass, ffn, heads.sum(1) + torch.diag_embed(bypass)


@torch.no_grad()
@pytest.mark.parametrize("least", [0.0, 0.05])
def test_information_flow(run, least):
    cache, blocks, limit = run
    heads, bypass, ffn, maps = (
        torch.stack(rows) for rows in zip(*(flow_reference(block, 1e-5, least) for block in blocks), strict=True)
    )
    if least and limit > 1e-9:
        pytest.skip("whether a share is just below the threshold is a matter of rounding")
    found = methods.information_flow(cache, part_threshold=least)
    for one, wanted in ((found.heads, heads), (found.bypass, bypass), (found.ffn, ffn)):
        assert float((one - wanted).abs().max()) < limit
    check(found, maps, limit)


@torch.no_grad()
def test_the_graph_of_information_flow():
    """Every edge is large and reached from above; every large edge that is reached is there."""
    cache = ref.cached(ref.bridged(ref.tiny("gpt2")), ref.tokens(n=8))
    flow = methods.information_flow(cache, 5, threshold=0.08)
    weights = flow.heads.sum(2)
    expected = set()
    for text in range(2):
        reached = {5}
        for layer in (1, 0):
            below = set()
            for i in reached:
                through = float(flow.ffn[layer, text, i])
                expected |= {("feed-forward", layer, text, i, i)} if through >= 0.08 else set()
                expected |= {("bypass of the feed-forward", layer, text, i, i)} if 1 - through >= 0.08 else set()
                if flow.bypass[layer, text, i] >= 0.08:
                    expected.add(("bypass", layer, text, i, i))
                    below.add(i)
                for j in range(8):
                    if weights[layer, text, i, j] >= 0.08:
                        expected.add(("attention", layer, text, i, j))
                        below.add(j)
            reached = below
    assert {(e.kind, e.layer, e.text, e.query, e.key) for e in flow.edges} == expected
    assert len(flow.edges) == len(expected) > 10 and all(edge.weight >= 0.08 for edge in flow.edges)
    fewer = methods.information_flow(cache, 5, threshold=0.3)
    assert len(fewer.edges) < len(flow.edges) and fewer.position == 5 and "edges" in repr(fewer)
    with pytest.raises(tl_norms.UnknownPositionError):
        methods.information_flow(cache, 8)
    with pytest.raises(tl_norms.UnknownOptionError):
        methods.information_flow(cache, threshold=2)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_alti_logit(dtype):
    model, ids = ref.tiny("gpt2", dtype), ref.tokens()
    cache = ref.cached(ref.bridged(model), ids)
    model = model.double()
    blocks, final = ref.dense_blocks(model, ids), model.transformer.ln_f
    last = blocks[-1].output[:, 4]
    scale = (last.var(-1, unbiased=False) + final.eps).sqrt()
    u = (model.lm_head.weight[11] - model.lm_head.weight[23]) * final.weight
    g = (u - u.mean()) / scale[:, None]  # [b d]
    wanted, below = [], None
    for block in blocks:
        sent = torch.einsum("bhk,bkhe,hed->bkd", block.pattern[:, :, 4], block.values, block.w_o)
        written = torch.einsum("bkd,bd->bk", sent, g)
        wanted.append(written if below is None else torch.einsum("bk,bkj->bj", written, below))
        vectors, rest = ref.dense_scopes(block, "player")["attn_res"]
        y = (vectors.sum(2) + rest)[:, :, None]
        near = (y.abs().sum(-1) - (y - vectors).abs().sum(-1)).clamp_min(0)
        near = near / near.sum(-1, keepdim=True)
        below = near if below is None else near @ below
    wanted = torch.stack(wanted)
    found = methods.alti_logit(cache, tl_norms.logit(11, at=4) - tl_norms.logit(23, at=4))
    assert found.shape == wanted.shape
    limit = 1e-9 if dtype == torch.float64 else 5e-5
    assert float((found - wanted).abs().max() / wanted.abs().max()) < limit
    with pytest.raises(tl_norms.UnknownOptionError):
        methods.alti_logit(cache, [tl_norms.logit(11)])
