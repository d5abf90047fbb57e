"""Dense decoders: GPT-2's descendants, parallel blocks, the Llama family, sandwich and post-norm blocks."""

from .zoo import D_MLP, D_MODEL, FLOAT64, N_CTX, N_HEADS, N_LAYERS, VOCAB, spec

IDS = dict(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2)
PLAIN = dict(
    IDS, num_hidden_layers=N_LAYERS, num_attention_heads=N_HEADS, hidden_size=D_MODEL, intermediate_size=D_MLP,
    max_position_embeddings=N_CTX, pad_token_id=0,
)  # fmt: skip
GROUPED = dict(PLAIN, num_key_value_heads=2)
GPT2 = dict(IDS, n_layer=N_LAYERS, n_head=N_HEADS, n_embd=D_MODEL, n_positions=N_CTX)
LOCAL_FIRST = dict(sliding_window=3, layer_types=["sliding_attention", "full_attention"])


def without(options: dict, *names: str) -> dict:
    return {name: value for name, value in options.items() if name not in names}


# ---- GPT-2 and other decoders with LayerNorm, one after the other
spec("GPT2LMHeadModel", "GPT2Config", GPT2, tolerance=FLOAT64)
spec("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", without(GPT2, "bos_token_id", "eos_token_id"), tolerance=FLOAT64)
spec("GPTBigCodeForCausalLM", "GPTBigCodeConfig", dict(GPT2, multi_query=True), tolerance=FLOAT64)
spec("GPTBigCodeForCausalLM@mha", "GPTBigCodeConfig", dict(GPT2, multi_query=False), broken="multi_query")
NEO = dict(
    IDS, num_layers=N_LAYERS, num_heads=N_HEADS, hidden_size=D_MODEL, intermediate_size=D_MLP,
    max_position_embeddings=N_CTX, attention_types=[[["global", "local"], 1]], window_size=3,
)  # fmt: skip
spec("GPTNeoForCausalLM", "GPTNeoConfig", NEO, tolerance=FLOAT64)
spec("NeoForCausalLM", "GPTNeoConfig", NEO, model="GPTNeoForCausalLM", tolerance=FLOAT64)
spec("GPTNeoXForCausalLM@sequential", "GPTNeoXConfig", dict(PLAIN, use_parallel_residual=False), tolerance=FLOAT64)
BLOOM = dict(hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, vocab_size=VOCAB)
spec("BloomForCausalLM", "BloomConfig", BLOOM, tolerance=FLOAT64)
spec(
    "BloomForCausalLM@residual_behind_norm", "BloomConfig",
    dict(BLOOM, apply_residual_connection_post_layernorm=True), tolerance=FLOAT64,
)  # fmt: skip
spec("BloomModel", "BloomConfig", BLOOM, model="BloomForCausalLM", tolerance=FLOAT64)
OPT = dict(without(PLAIN, "intermediate_size"), ffn_dim=D_MLP, word_embed_proj_dim=D_MODEL)
spec("OPTForCausalLM", "OPTConfig", OPT, tolerance=FLOAT64)
spec("OPTForCausalLM@relu_nobias", "OPTConfig", dict(OPT, enable_bias=False), tolerance=FLOAT64)
spec(
    "OPTForCausalLM@post_norm", "OPTConfig", dict(OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    broken="unpack",
)  # fmt: skip
spec(
    "XGLMForCausalLM", "XGLMConfig",
    dict(num_layers=N_LAYERS, attention_heads=N_HEADS, d_model=D_MODEL, ffn_dim=D_MLP, vocab_size=VOCAB,
         max_position_embeddings=N_CTX, pad_token_id=0), only_float32=True,
)  # fmt: skip
MPT = dict(n_layers=N_LAYERS, n_heads=N_HEADS, d_model=D_MODEL, vocab_size=VOCAB, max_seq_len=N_CTX)
spec("MptForCausalLM", "MptConfig", MPT, tolerance=FLOAT64)
spec("MPTForCausalLM", "MptConfig", MPT, model="MptForCausalLM", tolerance=FLOAT64)
spec("Starcoder2ForCausalLM", "Starcoder2Config", GROUPED, tolerance=FLOAT64)
spec("NemotronForCausalLM", "NemotronConfig", dict(GROUPED, head_dim=8), tolerance=FLOAT64)
spec("Jais2ForCausalLM", "Jais2Config", GROUPED, tolerance=FLOAT64)
spec("OlmoForCausalLM", "OlmoConfig", GROUPED)
spec("OlmoForCausalLM@clipped", "OlmoConfig", dict(GROUPED, clip_qkv=0.2))
spec("StableLmForCausalLM", "StableLmConfig", dict(GROUPED, use_qkv_bias=True), tolerance=FLOAT64)
spec(
    "ModernBertDecoderForCausalLM", "ModernBertDecoderConfig",
    dict(PLAIN, cls_token_id=1, sep_token_id=2, local_attention=6, attention_bias=True, mlp_bias=True, norm_bias=True,
         layer_types=["full_attention", "sliding_attention"]), tolerance=FLOAT64,
)  # fmt: skip

# ---- parallel: attention and feed-forward read the same stream
spec("GPTJForCausalLM", "GPTJConfig", dict(GPT2, rotary_dim=4), tolerance=FLOAT64)
spec("CodeGenForCausalLM", "CodeGenConfig", dict(GPT2, n_ctx=N_CTX, rotary_dim=4), tolerance=FLOAT64)
spec("GPTNeoXForCausalLM", "GPTNeoXConfig", dict(PLAIN, use_parallel_residual=True), tolerance=FLOAT64)
spec("NeoXForCausalLM", "GPTNeoXConfig", PLAIN, model="GPTNeoXForCausalLM", tolerance=FLOAT64)
spec("PhiForCausalLM", "PhiConfig", PLAIN, tolerance=FLOAT64)
spec("PhiForCausalLM@grouped", "PhiConfig", GROUPED, tolerance=FLOAT64)
spec("PhiForCausalLM@qk_norm", "PhiConfig", dict(GROUPED, qk_layernorm=True), broken="q_norm")
FALCON = dict(
    IDS, num_hidden_layers=N_LAYERS, num_attention_heads=N_HEADS, hidden_size=D_MODEL, ffn_hidden_size=D_MLP, bias=True
)  # fmt: skip
NEW_FALCON = dict(FALCON, new_decoder_architecture=True, num_kv_heads=2)
spec("FalconForCausalLM", "FalconConfig", dict(FALCON, multi_query=True, parallel_attn=True), tolerance=FLOAT64)
spec(
    "FalconForCausalLM@sequential", "FalconConfig", dict(FALCON, multi_query=False, parallel_attn=False),
    tolerance=FLOAT64,
)  # fmt: skip
spec(
    "FalconForCausalLM@alibi", "FalconConfig", dict(FALCON, multi_query=False, parallel_attn=False, alibi=True),
    tolerance=FLOAT64, note="TransformerLens adds ALiBi twice, as transformers' eager path does",
)  # fmt: skip
spec(
    "FalconForCausalLM@two_norms", "FalconConfig", dict(NEW_FALCON, multi_query=False), tolerance=FLOAT64,
    note="TransformerLens splits the grouped projection wrongly: the bridge's own numbers, not the model's",
)  # fmt: skip
spec("FalconForCausalLM@40b", "FalconConfig", dict(NEW_FALCON, multi_query=True), broken="split")
spec(
    "FalconForCausalLM@11b", "FalconConfig", dict(NEW_FALCON, multi_query=False, num_ln_in_parallel_attn=1),
    broken="ln_attn",
)  # fmt: skip
spec("CohereForCausalLM", "CohereConfig", GROUPED, tolerance=FLOAT64)
spec("CohereForCausalLM@qk_norm", "CohereConfig", dict(GROUPED, use_qk_norm=True), tolerance=FLOAT64)
spec("Cohere2ForCausalLM", "Cohere2Config", dict(GROUPED, **LOCAL_FIRST), tolerance=FLOAT64)
spec(
    "StableLmForCausalLM@parallel_qk_norm", "StableLmConfig",
    dict(GROUPED, use_parallel_residual=True, qk_layernorm=True), tolerance=FLOAT64,
)  # fmt: skip

# ---- Llama and its relatives: RMSNorm in front, gated feed-forward
HEADS8 = dict(GROUPED, head_dim=8)
spec("LlamaForCausalLM", "LlamaConfig", dict(GROUPED, attention_bias=True, mlp_bias=True))
spec("LlamaForCausalLM@plain", "LlamaConfig", PLAIN)
spec("LlamaForCausalLM@one_kv_head", "LlamaConfig", dict(PLAIN, num_key_value_heads=1))
spec("MistralForCausalLM", "MistralConfig", dict(GROUPED, sliding_window=3))
spec(
    "Ministral3ForCausalLM", "Ministral3Config",
    dict(HEADS8, rope_parameters=dict(rope_type="default", rope_theta=10000.0, llama_4_scaling_beta=0.1,
                                      original_max_position_embeddings=4)),
)  # fmt: skip
spec("Qwen2ForCausalLM", "Qwen2Config", GROUPED)
spec("Qwen3ForCausalLM", "Qwen3Config", HEADS8)
spec("SeedOssForCausalLM", "SeedOssConfig", HEADS8)
spec("SmolLM3ForCausalLM", "SmolLM3Config", dict(GROUPED, no_rope_layer_interval=2))
spec("Ernie4_5ForCausalLM", "Ernie4_5Config", dict(HEADS8, use_bias=True))
spec("HunYuanDenseV1ForCausalLM", "HunYuanDenseV1Config", HEADS8)
spec("GlmForCausalLM", "GlmConfig", HEADS8)
spec("ArceeForCausalLM", "ArceeConfig", GROUPED)
spec("ApertusForCausalLM", "ApertusConfig", GROUPED)
spec("BitNetForCausalLM", "BitNetConfig", GROUPED)
spec("Phi3ForCausalLM", "Phi3Config", GROUPED)
spec("NanoChatForCausalLM", "NanoChatConfig", GROUPED)
spec(
    "GraniteForCausalLM", "GraniteConfig",
    dict(GROUPED, attention_multiplier=0.35, residual_multiplier=0.5, embedding_multiplier=3.0, logits_scaling=2.0),
)  # fmt: skip
spec("HrmTextForCausalLM", "HrmTextConfig", dict(PLAIN, head_dim=8, H_cycles=2, L_cycles=2))

# ---- Gemma
GEMMA2 = dict(HEADS8, query_pre_attn_scalar=8, **LOCAL_FIRST)
GEMMA4 = dict(
    HEADS8, num_hidden_layers=4, sliding_window=3, layer_types=["sliding_attention", "full_attention"] * 2,
    hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB, global_head_dim=8,
)  # fmt: skip
spec("GemmaForCausalLM", "GemmaConfig", HEADS8)
spec("Gemma1ForCausalLM", "GemmaConfig", HEADS8, model="GemmaForCausalLM")
spec(
    "Gemma2ForCausalLM", "Gemma2Config", dict(GEMMA2, final_logit_softcapping=2.0, attn_logit_softcapping=1.0)
)  # fmt: skip
spec("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA2)
spec("VaultGemmaForCausalLM", "VaultGemmaConfig", GEMMA2)
spec(
    "Gemma4ForCausalLM", "Gemma4TextConfig", dict(GEMMA4, num_kv_shared_layers=2),
    note="four layers, the last two share keys and values; per-layer inputs",
)  # fmt: skip
spec(
    "Gemma4ForCausalLM@moe", "Gemma4TextConfig",
    dict(GEMMA4, num_kv_shared_layers=0, enable_moe_block=True, num_experts=4, top_k_experts=2,
         moe_intermediate_size=16, hidden_size_per_layer_input=0, attention_k_eq_v=True, num_global_key_value_heads=2),
    refused="Gemma4TextDecoderLayer",
)  # fmt: skip

# ---- norms behind the branches
spec("Olmo2ForCausalLM", "Olmo2Config", GROUPED)
spec("Olmo3ForCausalLM", "Olmo3Config", dict(GROUPED, **LOCAL_FIRST))
spec("Exaone4ForCausalLM", "Exaone4Config", dict(GROUPED, **LOCAL_FIRST))
spec("Glm4ForCausalLM", "Glm4Config", HEADS8)
