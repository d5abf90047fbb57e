"""Queries and keys of TransformerLens' own classes: norms of heads and of all heads, clamps, rotary, ALiBi, grouped."""

import warnings

import pytest
import tiny
import torch

import tl_norms

pytestmark = pytest.mark.skipif("hooked" not in tiny.KINDS, reason="TransformerLens 4 has these classes no more")
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 8, "final_rms": True, "normalization_type": "RMS"}
MODELS = {
    "plain": {},
    "norms of heads": {**ROTARY, "use_qk_norm": True},
    "norms of grouped heads": {**ROTARY, "use_qk_norm": True, "n_key_value_heads": 2},
    "norms of all heads": {**ROTARY, "original_architecture": "Olmo2ForCausalLM"},
    "clamped": {**ROTARY, "clip_qkv": 0.3},
    "neighbours": {**ROTARY, "rotary_adjacent_pairs": True, "rotary_dim": 4},
    "ALiBi": {"positional_embedding_type": "alibi"},
    "softcap": {"attn_scores_soft_cap": 2.0},
    "scaled": {"attn_scale": 1.7, "use_attn_scale": True},
}


def made(options):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = HookedTransformerConfig(
                n_layers=2, d_model=32, n_heads=4, d_head=8, d_mlp=48, n_ctx=16, d_vocab=61, act_fn="gelu",
                dtype=torch.float64, device="cpu", **{"normalization_type": "LN", **options},
            )  # fmt: skip
        except TypeError as error:
            pytest.skip(f"this TransformerLens has no such option: {error}")
        model = HookedTransformer(config, move_to_device=False).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_cut_adds_up(name):
    if name == "norms of all heads":
        hooked = pytest.importorskip("tl_norms.blocks.hooked")
        if not hooked.POST_NORM_ARCHITECTURES:
            pytest.skip("this TransformerLens has no such models")
    model = made(MODELS[name])
    tokens = torch.tensor([[5, 9, 30, 2, 44, 17], [8, 8, 1, 60, 3, 3]])
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    target = tl_norms.logit(7) - 2 * tl_norms.logit(11, at=3)
    for attention in ("held", "integrated"):
        found = tl_norms.attribute(cache, target, attention=attention)
        torch.testing.assert_close(found.value, logits[:, -1, 7] - 2 * logits[:, 3, 11])
        assert float(found.error.max()) < 1e-10
        torch.testing.assert_close(found.tokens.sum(-1) + found.offset[0], found.value)
    for layer in found.layers:
        assert found.logits(layer).shape == (2, 4, 6, 6)
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_k", lambda value, hook: value * 1.1)]):
        edited = model.run_with_cache(tokens)[1]
    if name == "norms of all heads" or "norms" in name:
        return  # a norm takes the factor away again
    with pytest.raises(tl_norms.DecompositionError, match="pattern rebuilt"):
        tl_norms.attribute(edited, target, attention="integrated")
