"""The measures of the 2024 paper: by hand, against scipy, on tiny models of every layout, and on MiniLM."""

import math
import sys

import feed_forward_reference as ref
import pytest
import torch
from scipy.stats import spearmanr

import tl_norms
from tl_norms import metrics
from tl_norms.linear.carry.terms import Sent

needs_bridge = pytest.mark.skipif(ref.build_bridge_from_module is None, reason="TransformerLens 2 has no bridge")
layouts = pytest.mark.parametrize("layout", ref.LAYOUTS)


def maps(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model_cache(layout, n=6):
    """A tiny model's cache; a HookedTransformer where there is no bridge."""
    model = ref.bridged(ref.tiny(layout)) if ref.build_bridge_from_module else ref.hooked()
    return ref.cached(model, ref.tokens(n))


@pytest.fixture(scope="module")
def gpt2_cache():
    return model_cache("gpt2")


# ---------------------------------------------------------------------------------------- contextualization change


def test_change_by_hand():
    """Ranks 1 2 3 4 against 1 2 4 3: 1 - rho = 6 sum d^2 / (n (n^2 - 1)) = 6 * 2 / 60."""
    before = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    after = torch.tensor([[1.0, 5.0], [90.0, 7.0]])
    assert float(metrics.contextualization_change(before, after, causal=False)) == pytest.approx(0.2)
    # j <= i leaves 0.1, 0.3, 0.4 against 1, 90, 7: ranks 1 2 3 against 1 3 2
    assert float(metrics.contextualization_change(before, after, causal=True)) == pytest.approx(0.5)
    assert float(metrics.contextualization_change(before, before.square(), causal=False)) == pytest.approx(0, abs=1e-7)
    assert float(metrics.contextualization_change(before, -before, causal=False)) == pytest.approx(2)


@pytest.mark.parametrize("axes", [(), (3,), (3, 2), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_change_is_scipys_spearman_for_every_map(axes, causal):
    before, after = maps(*axes, 5, 5, seed=1), maps(*axes, 5, 5, seed=2).round(decimals=1)  # rounding makes ties
    change = metrics.contextualization_change(before, after, causal=causal)
    assert change.shape == axes and change.dtype == torch.float64
    rows, columns = torch.tril_indices(5, 5).numpy() if causal else torch.ones(5, 5).nonzero().T.numpy()
    lefts, rights = before.reshape(-1, 5, 5), after.reshape(-1, 5, 5)
    for found, left, right in zip(change.flatten().tolist(), lefts, rights, strict=True):
        wanted = 1 - spearmanr(left.numpy()[rows, columns], right.numpy()[rows, columns])[0]
        assert found == pytest.approx(wanted, abs=1e-12)


def test_zeros_above_the_diagonal_would_inflate_the_correlation():
    before, after = maps(30, 30, seed=1).tril(), maps(30, 30, seed=2).tril()
    honest = float(metrics.contextualization_change(before, after, causal=True))
    inflated = float(metrics.contextualization_change(before, after, causal=False))
    assert honest > 0.85 and inflated < 0.4


def test_padding_is_left_out_text_by_text():
    before, after = maps(2, 2, 6, 6, seed=1), maps(2, 2, 6, 6, seed=2)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    for causal in (True, False):
        found = metrics.contextualization_change(before, after, causal=causal, mask=mask)
        whole = metrics.contextualization_change(before, after, causal=causal)
        short = metrics.contextualization_change(before[..., 2:, 2:], after[..., 2:, 2:], causal=causal)
        assert torch.equal(found[:, 0], whole[:, 0])
        assert torch.equal(found[:, 1], short[:, 1])
    alone = metrics.contextualization_change(before[:, 1], after[:, 1], causal=False, mask=mask[1])
    assert torch.equal(alone, found[:, 1])


def test_no_order_to_compare_is_nan_without_a_warning():
    before, constant = maps(4, 4), torch.ones(4, 4, dtype=torch.float64)
    assert math.isnan(metrics.contextualization_change(before, constant, causal=False))
    assert math.isnan(metrics.contextualization_change(before[:1, :1], before[:1, :1], causal=False))
    several = metrics.contextualization_change(torch.stack([before, constant]), maps(2, 4, 4, seed=3), causal=False)
    assert several.isnan().tolist() == [False, True]


def test_inputs_that_do_not_fit():
    with pytest.raises(metrics.MetricsInputError, match=r"got \[4, 4\] and \[5, 5\]"):
        metrics.contextualization_change(maps(4, 4), maps(5, 5), causal=False)
    with pytest.raises(metrics.MetricsInputError, match=r"no fewer keys than queries, got \[5, 4\]"):
        metrics.contextualization_change(maps(5, 4), maps(5, 4), causal=False)
    for shape in ((4,), (3, 5), (1, 2, 5)):
        with pytest.raises(tl_norms.MaskError, match=r"expected \[pos\] or \[batch pos\]"):
            metrics.contextualization_change(maps(1, 2, 5, 5), maps(1, 2, 5, 5), causal=False, mask=torch.ones(shape))
    assert issubclass(metrics.MetricsInputError, tl_norms.TLNormsError)


@pytest.mark.parametrize("module", ["scipy.stats", "pandas"])
def test_missing_extras_name_the_extra(monkeypatch, gpt2_cache, module):
    norms = tl_norms.ffn_maps(gpt2_cache)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(tl_norms.MissingExtraError, match=r"pip install 'tl_norms\[metrics\]'"):
        if module == "pandas":
            metrics.ff_amplification(norms).top_pairs(3)
        else:
            metrics.component_changes(norms)


@layouts
def test_component_changes_compare_neighbours(layout):
    norms = tl_norms.block_norms(model_cache(layout), "all")
    changes = metrics.component_changes(norms)
    assert tuple(changes) == norms.chain[1:]
    for before, after in zip(norms.chain, norms.chain[1:], strict=False):
        wanted = metrics.contextualization_change(norms[before], norms[after], causal=norms.causal)
        assert torch.equal(changes[after], wanted) and wanted.shape == (2, 2)
        assert (wanted > 0).any()
    few = tl_norms.ffn_maps(model_cache(layout))
    assert "attn_res" not in metrics.component_changes(few)


# ---------------------------------------------------------------------------------------- amplification


@layouts
def test_amplification_is_after_minus_before(layout):
    norms = tl_norms.ffn_maps(model_cache(layout))
    found = metrics.ff_amplification(norms)
    assert torch.equal(found.difference, norms["attn_res_ln_ff"] - norms["attn_res_ln"])
    rows = metrics.ff_amplification(norms, normalize="row")
    ones = torch.ones_like(rows.before[..., 0])
    torch.testing.assert_close(rows.before.sum(-1), ones)
    torch.testing.assert_close(rows.after.sum(-1), ones)
    whole = metrics.ff_amplification(norms, normalize="map")
    pairs = torch.ones(6, 6).tril().bool() if norms.causal else torch.ones(6, 6).bool()
    torch.testing.assert_close(whole.after[..., pairs].mean(-1), ones[..., 0])
    torch.testing.assert_close(whole.before[..., pairs].mean(-1), ones[..., 0])


def test_top_pairs_against_a_plain_sort(gpt2_cache):
    norms = tl_norms.ffn_maps(gpt2_cache)
    texts = [[f"{name}{n}" for n in range(6)] for name in "ab"]
    table = metrics.ff_amplification(norms).top_pairs(4, tokens=texts)
    names = ["layer", "batch", "query", "key", "query_token", "key_token", "before", "after", "difference"]
    assert list(table.columns) == names and len(table) == 8
    difference = norms["attn_res_ln_ff"] - norms["attn_res_ln"]
    for layer in range(2):
        pairs = [(float(difference[layer, b, q, k]), b, q, k) for b in range(2) for q in range(6) for k in range(q + 1)]
        rows = table[table.layer == layer]
        wanted = sorted(pairs, reverse=True)[:4]
        assert list(zip(rows.difference, rows.batch, rows["query"], rows.key, strict=True)) == wanted
    for row in table.itertuples():
        assert row.query_token == texts[row.batch][row._3] if hasattr(row, "_3") else True
        assert row.key_token == texts[row.batch][row.key]
        assert row.after - row.before == pytest.approx(row.difference)


def test_pairs_that_do_not_exist_are_never_listed(gpt2_cache):
    """All pairs that exist, once each, also when what does not exist (a difference of zero) would rank higher."""
    norms = tl_norms.ffn_maps(gpt2_cache, layers=1)
    for largest in (True, False):
        table = metrics.ff_amplification(norms).top_pairs(10_000, largest=largest)
        assert len(table) == 2 * 21 and (table.key <= table["query"]).all()
        assert len(table.drop_duplicates(["batch", "query", "key"])) == len(table)
        ordered = table.difference if not largest else -table.difference
        assert ordered.is_monotonic_increasing
    off = metrics.ff_amplification(norms).top_pairs(10_000, diagonal=False)
    assert len(off) == 2 * 15 and (off.key < off["query"]).all()
    assert set(off.layer) == {1}


@needs_bridge
def test_padding_is_never_listed():
    ids, mask = ref.tokens(6), torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    cache = ref.cached(ref.bridged(ref.tiny("bert")), ids, attention_mask=mask)
    norms = tl_norms.ffn_maps(cache, mask=mask)
    table = metrics.ff_amplification(norms).top_pairs(1000, largest=False)
    assert len(table) == 2 * (36 + 16)
    assert (table[table.batch == 1][["query", "key"]] < 4).all().all()
    alone = tl_norms.ffn_maps(ref.cached(ref.bridged(ref.tiny("bert")), ids[1:, :4]))
    for scope, change in metrics.component_changes(norms).items():
        torch.testing.assert_close(change[:, 1], metrics.component_changes(alone)[scope][:, 0])
    with_padding, without = metrics.cancellation(cache, mask=mask), metrics.cancellation(alone_cache(ids))
    for step in without.steps:
        torch.testing.assert_close(with_padding.changes["all"][step][:, 1], without.changes["all"][step][:, 0])
    torch.testing.assert_close(with_padding.output_norm[:, 1], without.output_norm[:, 0])
    torch.testing.assert_close(with_padding.stream_norm[:, 1], without.stream_norm[:, 0])
    shares = metrics.ff_amplification(norms, normalize="map").after[:, 1, :4, :4]
    torch.testing.assert_close(shares, metrics.ff_amplification(alone, normalize="map").after[:, 0])


def alone_cache(ids):
    return ref.cached(ref.bridged(ref.tiny("bert")), ids[1:, :4])


def test_tokens_that_do_not_fit(gpt2_cache):
    found = metrics.ff_amplification(tl_norms.ffn_maps(gpt2_cache))
    for tokens in (["a"] * 6, [["a"] * 6, ["a"] * 5]):
        with pytest.raises(metrics.MetricsInputError, match="the maps have 2 texts of 6 positions"):
            found.top_pairs(3, tokens=tokens)
    with pytest.raises(metrics.MetricsInputError, match="'rows'"):
        metrics.ff_amplification(tl_norms.ffn_maps(gpt2_cache), normalize="rows")
    with pytest.raises(tl_norms.UnknownScopeError, match="Ask for it"):
        metrics.ff_amplification(tl_norms.block_norms(gpt2_cache))


def test_one_text_without_a_batch_axis(gpt2_cache):
    model = gpt2_cache.model
    single = ref.cached(model, ref.tokens(6)[:1], remove_batch_dim=True)
    table = metrics.ff_amplification(tl_norms.ffn_maps(single)).top_pairs(2, tokens=list("abcdef"))
    assert "batch" not in table and len(table) == 4
    assert "amplified" in repr(metrics.ff_amplification(tl_norms.ffn_maps(single)))
    found, batched = metrics.cancellation(single), metrics.cancellation(gpt2_cache)
    assert found.output_norm.shape == (2,) and "batch" not in found.to_dataframe()
    torch.testing.assert_close(found.output_norm, batched.output_norm[:, 0])
    torch.testing.assert_close(found.changes["all"]["ln_ff"], batched.changes["all"]["ln_ff"][:, 0])
    assert metrics.component_changes(tl_norms.ffn_maps(single))["attn_res_ln_ff"].shape == (2,)


# ---------------------------------------------------------------------------------------- cancellation


@needs_bridge
@layouts
@pytest.mark.parametrize("few", [True, False])
def test_cancellation_against_dense_vectors(layout, few, monkeypatch):
    """Every change and mean length once more, from materialised vectors; of a short and as of a long text."""
    monkeypatch.setattr(Sent, "few", few)
    model, ids = ref.tiny(layout), ref.tokens(6)
    found = metrics.cancellation(ref.cached(ref.bridged(model), ids), leave_out=3)
    post = layout == "bert"
    base = "attn_res_ln" if post else "attn_res"
    assert found.base == base
    assert found.steps == (("ff", "ff_res", "ff_res_ln") if post else ("ln", "ln_ff", "ln_ff_res"))
    for layer, block in enumerate(ref.dense_blocks(model, ids)):
        scopes = ref.dense_scopes(block, "player")
        output, stream = (sum_of(scopes[scope]) for scope in ("attn_res_ln_ff", base))
        torch.testing.assert_close(found.output_norm[layer], output.norm(dim=-1).mean(-1))
        torch.testing.assert_close(found.stream_norm[layer], stream.norm(dim=-1).mean(-1))
        gain = (block.last_norm if post else block.norm).weight
        smallest = {int(n) for n in gain.abs().argsort()[:3]}
        largest = {int(n) for n in output.abs().mean((0, 1)).argsort()[-3:]}
        assert set(found.left_out["without_small_gains"][layer].tolist()) == smallest
        assert set(found.left_out["without_large_outputs"][layer].tolist()) == largest
        dropped = {"all": set(), "without_large_outputs": largest, "without_small_gains": smallest}
        for variant, gone in dropped.items():
            keep = [n for n in range(24) if n not in gone]
            lengths = {scope: parts[0][..., keep].norm(dim=-1) for scope, parts in scopes.items()}
            for step in found.steps:
                wanted = metrics.contextualization_change(lengths[base], lengths[f"{base}_{step}"], causal=not post)
                torch.testing.assert_close(found.changes[variant][step][layer], wanted)


def sum_of(parts):
    vectors, rest = parts
    return vectors.sum(2) + rest


def test_a_feed_forward_that_writes_nothing_is_cancelled_completely():
    """The base is what the residual connection brings back: without an output the change through RES is zero."""
    model = ref.bridged(ref.tiny("gpt2")) if ref.build_bridge_from_module else ref.hooked()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mlp" in name and ("c_proj" in name or "W_out" in name or "out.weight" in name):
                parameter *= 1e-30
    found = metrics.cancellation(ref.cached(model, ref.tokens(6)), leave_out=0)
    assert float(found.changes["all"]["ln_ff_res"].abs().max()) < 1e-12
    assert float(found.changes["all"]["ln_ff"].min()) > 0
    assert tuple(found.changes) == ("all",) and found.left_out == {}


@pytest.mark.parametrize("k", [-1, 24])
def test_leaving_out_all_or_fewer_than_none(gpt2_cache, k):
    with pytest.raises(metrics.MetricsInputError, match="expected 0 to 23 of the 24 dimensions"):
        metrics.cancellation(gpt2_cache, leave_out=k)


def test_cancellation_prints_and_tabulates(gpt2_cache):
    found = metrics.cancellation(gpt2_cache, layers=[1])
    table = found.to_dataframe()
    assert list(table.columns) == ["layer", "batch", "left_out", *found.steps, "output_norm", "stream_norm"]
    assert len(table) == 2 * 3 and set(table.layer) == {1}
    row = table[(table.left_out == "all") & (table.batch == 1)].iloc[0]
    assert row["ln_ff"] == pytest.approx(float(found.changes["all"]["ln_ff"][0, 1]))
    assert row["output_norm"] == pytest.approx(float(found.output_norm[0, 1]))
    assert "without_small_gains" in repr(found) and "attn_res," in repr(found)


PARALLEL = dict(n_layer=2, n_head=4, n_embd=24, n_positions=64, vocab_size=ref.VOCAB, rotary_dim=4)


@needs_bridge
def test_parallel_blocks():
    """GPT-J: the feed-forward reads its own position only, and the stream brings back no attention."""
    import transformers

    model = ref.jitter(transformers.GPTJForCausalLM(transformers.GPTJConfig(**PARALLEL)).double())
    model.set_attn_implementation("eager")
    cache = ref.cached(ref.bridged(model), ref.tokens(6))
    difference = metrics.ff_amplification(tl_norms.ffn_maps(cache)).difference
    off = ~torch.eye(6, dtype=torch.bool)
    assert torch.equal(difference[..., off], torch.zeros_like(difference[..., off]))
    assert (difference[..., ~off] != 0).all()
    found = metrics.cancellation(cache)
    assert (found.base, found.steps) == ("attn", ("ff", "ff_res"))
    for layer in range(2):
        mlp, stream = cache[f"blocks.{layer}.mlp.hook_out"], cache["resid_pre", layer]
        torch.testing.assert_close(found.output_norm[layer], mlp.norm(dim=-1).mean(-1))
        torch.testing.assert_close(found.stream_norm[layer], stream.norm(dim=-1).mean(-1))


@needs_bridge
def test_sandwich_norms_and_gains_that_are_one_more_than_their_weights():
    """Gemma 2 multiplies by 1 + weight: the smallest gains are not the weights nearest zero."""
    import transformers

    sizes = dict(ref.SIZES, num_key_value_heads=2, head_dim=6, query_pre_attn_scalar=6, sliding_window=8)
    model = ref.jitter(transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes)).double(), 0.7)
    model.set_attn_implementation("eager")
    found = metrics.cancellation(ref.cached(ref.bridged(model), ref.tokens(6)), leave_out=2)
    assert found.base == "attn_ln_res"
    assert found.steps == ("ln", "ln_ff", "ln_ff_ln", "ln_ff_ln_res")
    for layer, block in enumerate(model.model.layers):
        gain = 1 + block.post_feedforward_layernorm.weight
        wanted = {int(n) for n in gain.abs().argsort()[:2]}
        assert set(found.left_out["without_small_gains"][layer].tolist()) == wanted


def test_minilm(minilm):
    """On a real model: the feed-forward is largest where the layer norm's gains are smallest, as the paper found."""
    text = "The keys to the cabinet are on the table."
    cache = ref.cached(minilm, text)
    norms = tl_norms.ffn_maps(cache)
    for change in metrics.component_changes(norms).values():
        assert ((change > 0) & (change < 0.5)).all()
    found = metrics.cancellation(cache, leave_out=4)
    large, small = (found.left_out[f"without_{name}"] for name in ("large_outputs", "small_gains"))
    shared = [len(set(a) & set(b)) for a, b in zip(large.tolist(), small.tolist(), strict=True)]
    assert sum(shared) >= len(norms.layers)  # by chance: 4 * 4 / 384 per layer
    table = metrics.ff_amplification(norms).top_pairs(5, tokens=minilm.to_str_tokens(text))
    assert len(table) == 30 and (table.difference > 0).all()
    assert (table.query_token == "[CLS]").any()
