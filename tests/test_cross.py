"""Cross-attention norms and the decoder's chain, against weights and attentions of transformers itself."""

import pytest
import torch
from tiny import same

import tl_norms

bridges = pytest.importorskip("transformer_lens.model_bridge.sources", reason="bridges came with TransformerLens 3")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
    decoder_ffn_dim=48, d_model=32, vocab_size=60, max_position_embeddings=40, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None, attn_implementation="eager",
)  # fmt: skip
SOURCE = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 2, 0, 0]])
TARGET = torch.tensor([[2, 20, 21, 22, 23], [2, 24, 25, 0, 0]])
SOURCE_MASK, TARGET_MASK = (SOURCE != 0).long(), (TARGET != 0).long()


@pytest.fixture(scope="module")
def marian():
    """A bridge and the same model of transformers."""
    return made(transformers.MarianMTModel, transformers.MarianConfig(**SIZES), "MarianMTModel")


def made(kind, config, name, dtype=torch.float64):
    supported = pytest.importorskip("transformer_lens.factories.architecture_adapter_factory").SUPPORTED_ARCHITECTURES
    if name not in supported:
        pytest.skip(f"this TransformerLens has no {name}")
    torch.manual_seed(0)
    model = kind(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    copy = kind(config).to(dtype).eval()
    copy.load_state_dict(model.state_dict())
    return bridges.build_bridge_from_module(copy, name, hf_config=config), model


def cached(bridge, source=SOURCE[:1], target=TARGET[:1], **options):
    with torch.no_grad():
        return bridge.run_with_cache(source, decoder_input=target, **options)[1]


def by_hand(model, layer, source, target, **masks):
    """Weights [b h q s] and a f(x), [b h q s d], from the weights and outputs of transformers."""
    with torch.no_grad():
        out = model(source, decoder_input_ids=target, output_attentions=True, **masks)
        attention = model.model.decoder.layers[layer].encoder_attn
        values = attention.v_proj(out.encoder_last_hidden_state)
        vectors = []
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            vectors.append(values[..., part] @ attention.out_proj.weight[:, part].T)
        f = torch.stack(vectors, 1)
        alpha = out.cross_attentions[layer]
    return alpha, f, alpha[..., None] * f[:, :, None]


def test_cross_norms_are_those_of_the_vectors_of_transformers(marian):
    bridge, model = marian
    found = tl_norms.cross_norms(cached(bridge))
    assert found.layers == (0, 1, 2)
    for layer in found.layers:
        alpha, f, weighted = by_hand(model, layer, SOURCE[:1], TARGET[:1])
        torch.testing.assert_close(found.attention[layer], alpha)
        torch.testing.assert_close(found.value_norms[layer], f.norm(dim=-1))
        torch.testing.assert_close(found.head_norms[layer], weighted.norm(dim=-1))
        torch.testing.assert_close(found.norms[layer], weighted.sum(1).norm(dim=-1))
    assert found.norms.shape == (3, 1, 5, 7)
    assert float(found.error.max()) < 1e-12
    assert repr(found).startswith("CrossNorms, 3 layers, norms [3, 1, 5, 7] [layer batch query key]")


def test_a_padded_batch_gives_the_numbers_of_its_texts_alone(marian):
    bridge, _ = marian
    cache = cached(bridge, SOURCE, TARGET, attention_mask=SOURCE_MASK, decoder_attention_mask=TARGET_MASK)
    together = tl_norms.cross_norms(cache, mask=TARGET_MASK, source_mask=SOURCE_MASK)
    alone = tl_norms.cross_norms(cached(bridge, SOURCE[1:, :5], TARGET[1:, :3]))
    torch.testing.assert_close(together.head_norms[:, 1, :, :3, :5], alone.head_norms[:, 0])
    torch.testing.assert_close(together.norms[:, 1, :3, :5], alone.norms[:, 0])
    assert not together.norms[:, 1, 3:].any() and not together.norms[:, 1, :, 5:].any()

    chain = tl_norms.block_norms(cache, "all", mask=TARGET_MASK, source_mask=SOURCE_MASK)
    apart = tl_norms.block_norms(cached(bridge, SOURCE[1:, :5], TARGET[1:, :3]), "all")
    for scope in chain.scopes:
        whole = chain[scope][:, 1]
        torch.testing.assert_close(whole[:, :3, :3], apart[scope][:, 0, :, :3])
        if "cross" in scope:
            torch.testing.assert_close(whole[:, :3, 5:10], apart[scope][:, 0, :, 3:])
            assert not whole[:, :, 10:].any()
            for part, other in zip(
                vars(chain.mixing_shares(scope)).values(), vars(apart.mixing_shares(scope)).values(), strict=True
            ):
                torch.testing.assert_close(part[:, 1, :3], other[:, 0])
        assert not whole[:, 3:].any(), scope
        torch.testing.assert_close(chain.mixing_ratio(scope)[:, 1, :3], apart.mixing_ratio(scope)[:, 0])
    parts = tl_norms.decompose(cache, 1, chain.scopes[-1], mask=TARGET_MASK, source_mask=SOURCE_MASK)
    torch.testing.assert_close(parts.vectors().norm(dim=-1), chain[chain.scopes[-1]][1])


def test_the_chain_is_that_of_a_post_norm_decoder(marian):
    bridge, _ = marian
    chain = tl_norms.scopes(bridge)
    assert chain == (
        "attn",
        "attn_res",
        "attn_res_ln",
        "attn_res_ln_cross",
        "attn_res_ln_cross_res",
        "attn_res_ln_cross_res_ln",
        "attn_res_ln_cross_res_ln_ff",
        "attn_res_ln_cross_res_ln_ff_res",
        "attn_res_ln_cross_res_ln_ff_res_ln",
    )
    assert tl_norms.scopes(bridge, stack="encoder")[-1] == "attn_res_ln_ff_res_ln"
    norms = tl_norms.block_norms(cached(bridge))
    assert norms.scopes == chain[:6], "by default up to the feed-forward"
    assert norms.boundary == 5
    assert norms["attn_res_ln"].shape == (3, 1, 5, 5)
    assert norms["attn_res_ln_cross_res"].shape == (3, 1, 5, 12)


def test_cross_attention_alone_is_cross_norms_and_nothing_of_the_target(marian):
    cache = cached(marian[0])
    norms, cross = tl_norms.block_norms(cache, ["cross"]), tl_norms.cross_norms(cache)
    torch.testing.assert_close(norms["attn_res_ln_cross"][..., 5:], cross.norms)
    assert not norms["cross"][..., :5].any()
    assert bool((norms.mixing_ratio("cross") == 1).all())


def test_shares_are_lengths_of_sums_of_vectors(marian):
    cache = cached(marian[0])
    scope = "attn_res_ln_cross_res_ln_ff_res"
    norms = tl_norms.block_norms(cache, [scope])
    shares = norms.mixing_shares(scope)
    for layer in norms.layers:
        vectors = tl_norms.decompose(cache, layer, scope).vectors()[0]
        own = torch.stack([vectors[i, i] for i in range(5)]).norm(dim=-1)
        context = torch.stack([sum(vectors[i, j] for j in range(5) if j != i) for i in range(5)]).norm(dim=-1)
        source = vectors[:, 5:].sum(1).norm(dim=-1)
        whole = own + context + source
        torch.testing.assert_close(shares.own[layer, 0], own / whole)
        torch.testing.assert_close(shares.context[layer, 0], context / whole)
        torch.testing.assert_close(shares.source[layer, 0], source / whole)
        others = (vectors.sum(1) - torch.stack([vectors[i, i] for i in range(5)])).norm(dim=-1)
        torch.testing.assert_close(norms.mixing_ratio(scope)[layer, 0], others / (others + own))
    with pytest.raises(tl_norms.UnknownScopeError, match="no cross-attention"):
        tl_norms.block_norms(cache, ["attn"]).mixing_shares("attn")


def test_single_keys_and_slices_of_both_sequences(marian):
    parts = tl_norms.decompose(cached(marian[0]), 1, "attn_res_ln_cross_res_ln")
    whole = parts.vectors()
    assert parts.boundary == 5 and whole.shape == (1, 5, 12, 32)
    torch.testing.assert_close(parts.vectors(query=3, key=3), whole[:, 3:4, 3:4])
    torch.testing.assert_close(parts.vectors(query=3, key=8), whole[:, 3:4, 8:9])
    torch.testing.assert_close(parts.vectors(key=-1), whole[:, :, -1:])
    torch.testing.assert_close(parts.vectors(slice(1, 4), slice(3, 9)), whole[:, 1:4, 3:9])
    torch.testing.assert_close(whole.sum(2) + parts.remainder, parts.total())


@pytest.mark.parametrize("max_memory", [40_000, 400_000])
def test_numbers_do_not_depend_on_the_memory_allowed(marian, max_memory):
    cache = cached(marian[0])
    whole, pieces = tl_norms.ffn_maps(cache), tl_norms.ffn_maps(cache, max_memory=max_memory)
    assert whole.scopes[0] == "attn_res_ln_cross_res_ln"
    for scope in whole.scopes:
        torch.testing.assert_close(pieces[scope], whole[scope])


def test_a_sketch_estimates_both_sequences(marian):
    cache = cached(marian[0])
    exact = tl_norms.ffn_maps(cache)
    estimate = tl_norms.ffn_maps(cache, sketch=4000)
    scope = exact.scopes[-1]
    off = (estimate[scope] - exact[scope]).abs()
    assert 0 < float(off[..., 5:].max()) < 0.1 * float(exact[scope].max())
    assert float(off[..., :5].max()) < 0.1 * float(exact[scope].max())
    error = estimate.standard_error(scope)
    assert not error.diagonal(dim1=-2, dim2=-1).any() and bool((error[..., 5:] > 0).all())


def test_the_recorder_gives_the_same_numbers(marian):
    bridge, _ = marian
    masks = dict(mask=TARGET_MASK, source_mask=SOURCE_MASK)
    cache = cached(bridge, SOURCE, TARGET, attention_mask=SOURCE_MASK, decoder_attention_mask=TARGET_MASK)
    expected = tl_norms.block_norms(cache, "all", **masks)
    with torch.no_grad():
        _, norms = tl_norms.run_with_norms(bridge, SOURCE, decoder_input=TARGET, scopes="all", **masks)
    assert norms.boundary == 5
    for scope in expected.scopes:
        assert same(norms[scope], expected[scope]), scope
        assert same(norms.mixing_ratio(scope), expected.mixing_ratio(scope))
    source = expected.mixing_shares(expected.scopes[-1]).source
    assert same(norms.mixing_shares(expected.scopes[-1]).source, source)


def test_required_hooks_are_enough(marian):
    bridge, _ = marian
    names = tl_norms.required_hooks(bridge, "cross", layers=[1])
    cache = cached(bridge, names_filter=names)
    assert set(cache.cache_dict) == set(names)
    torch.testing.assert_close(
        tl_norms.cross_norms(cache, layers=[1]).norms, tl_norms.cross_norms(cached(bridge), layers=1).norms
    )
    assert tl_norms.block_norms(cache, "cross", layers=[1])["cross"].shape == (1, 1, 5, 12)


def test_extended_caches_and_tables_name_both_sequences(marian):
    cache = cached(marian[0])
    extended = tl_norms.extend_cache(cache, ["cross"])
    assert extended["decoder_blocks.2.hook_norm_attn_res_ln_cross"].shape == (1, 5, 12)
    pytest.importorskip("pandas")
    norms = tl_norms.block_norms(cache, ["attn", "attn_res_ln_cross_res"])
    rows = norms.to_dataframe()
    strongest = norms["attn_res_ln_cross_res"].argmax(-1).flatten()
    of_source = rows[rows.scope == "attn_res_ln_cross_res"].strongest_in == "source"
    assert of_source.tolist() == (strongest >= 5).tolist()
    assert set(rows[rows.scope == "attn"].strongest_in) == {"target"}


def test_without_a_batch_axis(marian):
    cache, flat = cached(marian[0]), cached(marian[0], remove_batch_dim=True)
    torch.testing.assert_close(tl_norms.cross_norms(flat).head_norms, tl_norms.cross_norms(cache).head_norms[:, 0])
    norms, expected = tl_norms.block_norms(flat), tl_norms.block_norms(cache)
    scope = norms.scopes[-1]
    torch.testing.assert_close(norms[scope], expected[scope][:, 0])
    torch.testing.assert_close(norms.mixing_shares(scope).own, expected.mixing_shares(scope).own[:, 0])


def test_a_decoder_only_cache_is_refused():
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, attn_implementation="eager")
    bridge, _ = made(transformers.GPT2LMHeadModel, config, "GPT2LMHeadModel", torch.float32)
    _, cache = bridge.run_with_cache(torch.arange(5, 9)[None])
    with pytest.raises(tl_norms.UnsupportedArchitectureError, match="GPT2LMHeadModel has no cross-attention"):
        tl_norms.cross_norms(cache)


def test_bad_input_is_named(marian):
    bridge, _ = marian
    without = cached(bridge)
    for layer in range(3):
        del without.cache_dict[f"decoder_blocks.{layer}.cross_attn.hook_pattern"]
    with pytest.raises(tl_norms.AttentionPatternError, match=r"decoder_blocks\.0\.cross_attn\.hook_pattern"):
        tl_norms.cross_norms(without)
    cache = cached(bridge)
    with pytest.raises(tl_norms.MaskError, match=r"\[1, 5\].*\[1, 7\]"):
        tl_norms.cross_norms(cache, source_mask=torch.ones(1, 5))
    with pytest.raises(tl_norms.MaskError, match=r"\[1, 7\].*\[1, 5\]"):
        tl_norms.cross_norms(cache, mask=torch.ones(1, 7))
    with pytest.raises(tl_norms.MaskError, match="run without it"):
        tl_norms.cross_norms(cache, source_mask=torch.tensor([[1, 1, 1, 1, 1, 1, 0]]))
    with pytest.raises(tl_norms.UnknownLayerError, match="layers 0 to 2"):
        tl_norms.cross_norms(cache, layers=3)
    with pytest.raises(tl_norms.NotACacheError):
        tl_norms.cross_norms(cache.cache_dict)


def test_a_cross_attention_that_was_edited_does_not_add_up(marian):
    cache = cached(marian[0])
    cache.cache_dict["decoder_blocks.1.cross_attn.hook_pattern"] *= 1.01
    with pytest.raises(tl_norms.DecompositionError, match="layer 1, scope 'attn_res_ln_cross'"):
        tl_norms.cross_norms(cache)
    assert float(tl_norms.cross_norms(cache, check=False).error[1]) > 1e-4


def test_metrics_compare_both_sequences(marian):
    """Contextualization change and amplification after cross-attention: over all pairs that exist, by hand."""
    stats = pytest.importorskip("scipy.stats")
    from tl_norms import metrics

    cache = cached(marian[0], SOURCE, TARGET, attention_mask=SOURCE_MASK, decoder_attention_mask=TARGET_MASK)
    masks = dict(mask=TARGET_MASK, source_mask=SOURCE_MASK)
    norms = tl_norms.block_norms(cache, "all", **masks)
    pairs = norms.pairs(norms.scopes[-1])
    for text, (n, m) in enumerate(((5, 7), (3, 5))):
        for query in range(5):
            for key in range(12):
                exists = query < n and (key <= query if key < 5 else key - 5 < m)
                assert bool(pairs[text, query, key]) == exists
    changes = metrics.component_changes(norms)
    assert "attn_res_ln_cross" not in changes and "attn_res_ln_cross_res_ln" in changes
    before, after = "attn_res_ln_cross_res_ln", "attn_res_ln_cross_res_ln_ff"
    for layer in norms.layers:
        for text in range(2):
            left, right = (norms[scope][layer, text][pairs[text]].numpy() for scope in (before, after))
            expected = 1 - stats.spearmanr(left, right)[0]
            assert float(changes[after][layer, text]) == pytest.approx(expected, abs=1e-6)
    difference = metrics.ff_amplification(norms)
    torch.testing.assert_close(difference.difference, norms[after] - norms[before])
    words = [[f"t{i}" for i in range(5)] + [f"s{i}" for i in range(7)] for _ in range(2)]
    table = difference.top_pairs(200, tokens=words)
    assert len(table) == 3 * int(pairs.sum())
    assert set(table[table.key >= 5].key_token.str[0]) == {"s"} and set(table.query_token.str[0]) == {"t"}
    cancelled = metrics.cancellation(cache, leave_out=0, **masks)
    assert cancelled.base == before
    torch.testing.assert_close(cancelled.changes["all"]["ff"], changes[after])
