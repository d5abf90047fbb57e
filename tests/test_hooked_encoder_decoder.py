"""TransformerLens' own T5 (versions 2 and 3): both stacks, against its weights."""

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


@pytest.fixture(scope="module", params=["relu", "gated"])
def model(request):
    torch.manual_seed(0)
    gated = request.param == "gated"
    config = dict(
        n_layers=2, d_model=32, n_ctx=64, d_head=8, n_heads=4, d_mlp=48, d_vocab=60, gated_mlp=gated, device="cpu",
        act_fn="gelu_new" if gated else "relu", normalization_type="RMS", use_attn_scale=False, init_weights=False,
        positional_embedding_type="relative_positional_bias", relative_attention_max_distance=32,
        relative_attention_num_buckets=8, tie_word_embeddings=True, attention_dir="bidirectional", dtype=torch.float64,
    )  # fmt: skip
    made = HookedEncoderDecoder(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return made


@pytest.fixture
def cache(model):
    with torch.no_grad():
        return model.run_with_cache(TOKENS, TARGET, one_zero_attention_mask=MASK)[1]


def test_both_stacks_are_complete_at_every_scope(model, cache):
    decoder = tl_norms.block_norms(cache, "all", source_mask=MASK)
    encoder = tl_norms.block_norms(cache, "all", stack="encoder", mask=MASK)
    assert decoder.scopes[-1] == "attn_res_cross_res_ln_ff_res" and decoder.boundary == 4
    assert encoder.scopes[-1] == "attn_res_ln_ff_res" and encoder.boundary is None
    for norms in (decoder, encoder):
        for scope, error in norms.error.items():
            assert float(error.max()) < 1e-12, scope  # nan is not below
    with pytest.raises(tl_norms.UnsupportedArchitectureError, match="no stack 'middle'"):
        tl_norms.scopes(model, stack="middle")


def test_vectors_are_those_of_the_weights(model, cache):
    """attn_res_cross_res of layer 1, from the parameters."""
    with torch.no_grad():
        block, at = model.decoder[1], "decoder.1."
        encoded = model.encoder_final_ln(cache["encoder.1.hook_resid_post"])
        stream = cache[at + "hook_resid_pre"]
        normed = block.ln1(stream)

        def heads(attention, x):
            value = torch.einsum("bkd,hde->bkhe", x, attention.W_V) + attention.b_V
            return torch.einsum("bkhe,hed->bhkd", value, attention.W_O)

        near = torch.einsum("bhqk,bhkd->bqkd", cache[at + "attn.hook_pattern"], heads(block.attn, normed))
        near += torch.eye(4, dtype=torch.float64)[None, :, :, None] * stream[:, None]
        far = torch.einsum("bhqk,bhkd->bhqkd", cache[at + "cross_attn.hook_pattern"], heads(block.cross_attn, encoded))
        far = far * MASK[:, None, None, :, None]
    norms = tl_norms.block_norms(cache, ["attn_res_cross_res"], layers=[1], source_mask=MASK)
    torch.testing.assert_close(norms["attn_res_cross_res"][0], torch.cat([near, far.sum(1)], 2).norm(dim=-1))
    cross = tl_norms.cross_norms(cache, layers=[1], source_mask=MASK)
    torch.testing.assert_close(cross.head_norms[0], far.norm(dim=-1))
    torch.testing.assert_close(cross.norms[0], far.sum(1).norm(dim=-1))


def test_the_recorder_gives_the_same_numbers(model, cache):
    expected = tl_norms.block_norms(cache, "all", source_mask=MASK)
    with torch.no_grad():
        _, norms = tl_norms.run_with_norms(model, TOKENS, TARGET, scopes="all", source_mask=MASK)
    for scope in expected.scopes:
        assert torch.equal(norms[scope], expected[scope]), scope
