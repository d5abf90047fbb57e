"""Trained models: every scope complete, and numbers like those of the papers."""

import itertools

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
        assert float(error.max()) < 5e-5, scope  # relative to what the branch adds, not to the long stream
        assert norms[scope].isfinite().all()


# ---- where a prediction comes from

SINGULAR, PLURAL = ("is", "was", "has"), ("are", "were", "have")
NOUNS = ("key", "book", "letter", "car", "door")
OTHERS = ("cabinet", "houses", "teacher", "boxes", "gardens")


def agreement_sentences():
    """50 of them: (text, verb that agrees, verb that does not)."""
    made = []
    for number, (noun, other) in enumerate(itertools.product(NOUNS, OTHERS)):
        one, many = SINGULAR[number % 3], PLURAL[number % 3]
        made.append((f"The {noun}s to the {other}", f" {many}", f" {one}"))
        made.append((f"The {noun} near the {other}", f" {one}", f" {many}"))
    return made


@pytest.mark.slow
def test_smollm2_prefers_are_because_of_keys(smollm2):
    """The first example of the README."""
    with torch.no_grad():
        logits, cache = smollm2.run_with_cache("The keys to the cabinet", prepend_bos=False)
    found = tl_norms.attribute(cache, tl_norms.logit(" are") - tl_norms.logit(" is"))
    ids = [smollm2.tokenizer(word)["input_ids"][0] for word in (" are", " is")]
    assert float(found.value) == pytest.approx(float(logits[0, -1, ids[0]] - logits[0, -1, ids[1]]), abs=1e-4)
    assert float(found.value) == pytest.approx(3.40967, abs=1e-3)
    assert found.error.shape == (31,) and float(found.error.max()) < 1e-5
    values = dict(zip(found.token_strings[0], found.tokens[0].tolist(), strict=True))
    assert values[" keys"] > 0 and values["The"] > 0 > values[" cabinet"]


@pytest.mark.slow
def test_tokens_beside_the_effects_of_removing_them(smollm2, record_property):
    """Rank correlation over the tokens of 50 sentences, reported. A removed token gets the mean embedding."""
    weights = smollm2.tokenizer, smollm2.original_model.get_input_embeddings().weight
    tokenizer, mean = weights[0], weights[1].detach().mean(0)
    hooks = tl_norms.required_hooks(smollm2, target=tl_norms.logit(0))
    correlations = []
    for text, agrees, other in agreement_sentences():
        tokens = tokenizer(text, return_tensors="pt").input_ids
        first, second = (tokenizer(word)["input_ids"] for word in (agrees, other))
        assert len(first) == len(second) == 1
        with torch.no_grad():
            cache = smollm2.run_with_cache(tokens, names_filter=hooks)[1]
        found = tl_norms.attribute(cache, tl_norms.logit(agrees) - tl_norms.logit(other))
        assert float(found.error.max()) < 1e-5, text
        n = tokens.shape[1]

        def removed(embedded, hook, n=n):  # row j without token j; the last row is the sentence itself
            embedded = embedded.clone()
            embedded[torch.arange(n), torch.arange(n)] = mean
            return embedded

        with torch.no_grad(), smollm2.hooks(fwd_hooks=[("embed.hook_out", removed)]):
            logits = smollm2(tokens.repeat(n + 1, 1))[:, -1]
        difference = logits[:, first[0]] - logits[:, second[0]]
        torch.testing.assert_close(difference[-1:], found.value, rtol=1e-3, atol=1e-3)
        effects = difference[-1] - difference[:-1]
        correlations.append(float(torch.corrcoef(torch.stack([ranks(found.tokens[0]), ranks(effects)]))[0, 1]))
    correlations = torch.tensor(correlations)
    assert len(correlations) == 50 and correlations.isfinite().all()
    for name, value in (("mean", correlations.mean()), ("median", correlations.median()), ("min", correlations.min())):
        record_property(f"rank correlation, {name}", float(value))
        print(f"rank correlation of tokens and effects of removing them, {name} of 50: {float(value):.3f}")


def ranks(values):
    return values.argsort().argsort().double()
