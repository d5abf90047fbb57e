"""Encoder-decoders: both stacks, the source's tokens through the encoder, on TransformerLens' own T5."""

import pytest
import torch

import tl_norms

lens = pytest.importorskip("transformer_lens")
try:
    HookedEncoderDecoder = lens.HookedEncoderDecoder
except (AttributeError, ImportError):
    pytest.skip("this TransformerLens has no HookedEncoderDecoder", allow_module_level=True)

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 0, 0]])
TARGET = torch.tensor([[0, 20, 21, 22], [0, 24, 25, 26]])
MASK = (TOKENS != 0).double()


def test_both_stacks_of_the_hooked_t5_add_up():
    torch.manual_seed(0)
    config = dict(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, n_heads=4, d_mlp=48, d_vocab=60, gated_mlp=True, device="cpu",
        act_fn="gelu_new", normalization_type="RMS", use_attn_scale=False, init_weights=False,
        positional_embedding_type="relative_positional_bias", relative_attention_max_distance=32,
        relative_attention_num_buckets=8, tie_word_embeddings=True, attention_dir="bidirectional", dtype=torch.float64,
    )  # fmt: skip
    model = HookedEncoderDecoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        logits, cache = model.run_with_cache(TOKENS, TARGET, one_zero_attention_mask=MASK)
    found = tl_norms.attribute(cache, tl_norms.logit(7) - tl_norms.logit(9), source_mask=MASK)
    torch.testing.assert_close(found.value, logits[:, -1, 7] - logits[:, -1, 9])
    assert float(found.error.max()) < 1e-12 and float(found.source_error.max()) < 1e-12
    total = found.tokens.sum(-1) + found.source_tokens.sum(-1) + found.source_offset[0]
    torch.testing.assert_close(total, found.value)
    assert not found.source_tokens[1, 5:].any() and found.source_tokens[:, :5].all()
    crossed = found.cross_edges(1)
    assert crossed.shape == (2, 4, 4, 7) and not crossed[1, ..., 5:].any()
    torch.testing.assert_close(crossed.sum((-1, -2)), found.cross_heads[1])
    assert found.edges(0, "encoder").shape == (2, 4, 7, 7)
