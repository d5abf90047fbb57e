"""Trained models: every scope complete, and numbers like those of the papers."""

import pytest
import torch

import tl_norms

SENTENCE = "The keys to the cabinet are on the table."


def test_minilm_is_complete(minilm):
    with torch.no_grad():
        cache = minilm.run_with_cache(SENTENCE)[1]
    norms = tl_norms.block_norms(cache)
    assert norms.scopes == ("attn", "attn_res", "attn_res_ln") and norms.layers == tuple(range(6))
    assert norms.processing == () and not norms.causal
    for scope, error in norms.error.items():
        assert 0 < float(error.max()) < 1e-5, scope
        assert norms[scope].isfinite().all() and norms[scope].min() >= 0
    # Kobayashi et al. 2021: residual and layer norm keep far more of the token itself than attention weights suggest
    weights, attn = norms.attention_mixing_ratio().mean(), norms.mixing_ratio("attn").mean()
    assert (
        norms.mixing_ratio("attn_res").mean() < 0.5 * attn and norms.mixing_ratio("attn_res_ln").mean() < 0.5 * weights
    )


def test_minilm_on_a_padded_batch(minilm):
    texts = [SENTENCE, "A cat."]
    batch = minilm.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        cache = minilm.run_with_cache(batch.input_ids, attention_mask=batch.attention_mask)[1]
        alone = minilm.run_with_cache(minilm.tokenizer(texts[1], return_tensors="pt").input_ids)[1]
    norms, single = tl_norms.block_norms(cache, mask=batch.attention_mask), tl_norms.block_norms(alone)
    n = int(batch.attention_mask[1].sum())
    for scope in norms:
        assert (norms[scope][:, 1, :n, :n] - single[scope][:, 0]).abs().max() < 1e-4 * single[scope].max()
        assert not norms[scope][:, 1, n:].any() and float(norms.error[scope].max()) < 1e-5


@pytest.mark.slow
def test_smollm2_is_complete_through_the_whole_block(smollm2):
    """SmolLM2-135M-Instruct, 4-bit weights made float32: all scopes, feed-forward included."""
    with torch.no_grad():
        cache = smollm2.run_with_cache(SENTENCE)[1]
    norms = tl_norms.block_norms(cache, "all")
    assert len(norms.layers) == 30 and norms.scopes[-1] == "attn_res_ln_ff_res" and norms.causal
    for scope, error in norms.error.items():
        assert float(error.max()) < 1e-5, scope
        assert norms[scope].isfinite().all()
