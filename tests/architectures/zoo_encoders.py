"""Encoders, and both stacks of encoder-decoders."""

from dataclasses import replace

import transformers

from .zoo import D_MLP, D_MODEL, FLOAT64, N_CTX, N_HEADS, N_LAYERS, SPECS, VOCAB, NotHere, add, spec
from .zoo_dense import GEMMA2, PLAIN, without

spec("BertForMaskedLM", "BertConfig", PLAIN, tolerance=FLOAT64)
spec("BertLMHeadModel", "BertConfig", dict(PLAIN, is_decoder=True), tolerance=FLOAT64)
spec("RobertaForMaskedLM", "RobertaConfig", PLAIN, tolerance=FLOAT64)

T5 = dict(
    num_layers=N_LAYERS, num_heads=N_HEADS, d_model=D_MODEL, d_kv=8, d_ff=D_MLP, vocab_size=VOCAB, pad_token_id=0,
    decoder_start_token_id=0,
)  # fmt: skip
BART = dict(
    encoder_layers=N_LAYERS, decoder_layers=N_LAYERS, encoder_attention_heads=N_HEADS, decoder_attention_heads=N_HEADS,
    encoder_ffn_dim=D_MLP, decoder_ffn_dim=D_MLP, d_model=D_MODEL, vocab_size=VOCAB, max_position_embeddings=N_CTX,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
)  # fmt: skip
ENCODER = dict(stack="encoder")

spec("T5ForConditionalGeneration", "T5Config", T5, **ENCODER)
spec("T5ForConditionalGeneration@gated_gelu", "T5Config", dict(T5, feed_forward_proj="gated-gelu"), **ENCODER)
spec("T5WithLMHeadModel", "T5Config", T5, model="T5ForConditionalGeneration", **ENCODER)
spec("MT5ForConditionalGeneration", "MT5Config", T5, **ENCODER)
spec("LongT5ForConditionalGeneration", "LongT5Config", dict(T5, local_radius=3), refused="hook_pattern", **ENCODER)
spec(
    "LongT5ForConditionalGeneration@transient_global", "LongT5Config",
    dict(T5, local_radius=3, global_block_size=2, encoder_attention_type="transient-global"), refused="hook_pattern",
    **ENCODER,
)  # fmt: skip
spec(
    "SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig",
    dict(T5, num_decoder_layers=N_LAYERS, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=4,
         expert_capacity=16, router_jitter_noise=0.0), refused="SwitchTransformersAttention", **ENCODER,
)  # fmt: skip
spec("BartForConditionalGeneration", "BartConfig", BART, tolerance=FLOAT64, **ENCODER)
spec("MBartForConditionalGeneration", "MBartConfig", BART, tolerance=FLOAT64, **ENCODER)
spec("MarianMTModel", "MarianConfig", dict(BART, scale_embedding=True), tolerance=FLOAT64, **ENCODER)
spec("PegasusForConditionalGeneration", "PegasusConfig", BART, tolerance=FLOAT64, **ENCODER)
spec("BlenderbotForConditionalGeneration", "BlenderbotConfig", BART, tolerance=FLOAT64, **ENCODER)
spec(
    "M2M100ForConditionalGeneration", "M2M100Config", dict(BART, encoder_layerdrop=0.0, decoder_layerdrop=0.0),
    tolerance=FLOAT64, **ENCODER,
)  # fmt: skip
spec(
    "LEDForConditionalGeneration", "LEDConfig",
    dict(without(BART, "max_position_embeddings", "forced_eos_token_id"), max_encoder_position_embeddings=N_CTX,
         max_decoder_position_embeddings=N_CTX, attention_window=4), refused="LEDEncoderAttention", **ENCODER,
)  # fmt: skip


def _t5gemma():
    if not hasattr(transformers, "T5GemmaConfig"):
        raise NotHere("transformers has no T5Gemma")
    module = transformers.T5GemmaModuleConfig
    stacks = dict(encoder=module(**GEMMA2), decoder=module(**GEMMA2, is_decoder=True))
    return transformers.T5GemmaForConditionalGeneration(transformers.T5GemmaConfig(**stacks, vocab_size=VOCAB))


def _t5gemma2():
    if not hasattr(transformers, "T5Gemma2Config"):
        raise NotHere("transformers has no T5Gemma2")
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.T5Gemma2Config(
        encoder=dict(text_config=dict(GEMMA2), vision_config=vision, mm_tokens_per_image=4),
        decoder=dict(GEMMA2),
        image_token_index=VOCAB - 1,
    )
    return transformers.T5Gemma2ForConditionalGeneration(config)


add("T5GemmaForConditionalGeneration", _t5gemma, **ENCODER)
add("T5Gemma2ForConditionalGeneration", _t5gemma2, **ENCODER)


def _decoders():
    """The same models, the decoder's blocks. Where the encoder's attention is hidden the decoder's need not be."""
    for encoder in [found for found in SPECS.values() if found.stack == "encoder"]:
        architecture, _, variant = encoder.name.partition("@")
        name = f"{architecture}@{variant}_decoder" if variant else f"{architecture}@decoder"
        kind = {"SwitchTransformers": "SwitchTransformersAttention", "T5Gemma2": "T5Gemma2MergedAttention"}
        refused = next((why for start, why in kind.items() if name.startswith(f"{start}For")), None)
        SPECS[name] = replace(encoder, name=name, stack="decoder", refused=refused)


_decoders()
