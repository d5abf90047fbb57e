"""Mixtures of experts and latent attention (MLA)."""

from .zoo import D_MODEL, FLOAT64, N_CTX, N_LAYERS, VOCAB, spec
from .zoo_dense import GROUPED, HEADS8, LOCAL_FIRST, PLAIN, without

EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
LATENT = dict(
    PLAIN, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
)  # fmt: skip
DEEPSEEK = dict(
    n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1,
    n_group=1, topk_group=1,
)  # fmt: skip
DENSE_FIRST = dict(mlp_only_layers=[0])
NARROW = dict(HEADS8, intermediate_size=4)

spec("MixtralForCausalLM", "MixtralConfig", dict(GROUPED, **LOCAL))
spec("OlmoeForCausalLM", "OlmoeConfig", dict(GROUPED, num_experts=4, num_experts_per_tok=2))
spec("OlmoeForCausalLM@clipped", "OlmoeConfig", dict(GROUPED, num_experts=4, num_experts_per_tok=2, clip_qkv=0.2))
spec("FlexOlmoForCausalLM", "FlexOlmoConfig", dict(GROUPED, num_experts=4, num_experts_per_tok=2))
spec(
    "Qwen2MoeForCausalLM", "Qwen2MoeConfig", dict(GROUPED, **EXPERTS, **DENSE_FIRST, shared_expert_intermediate_size=16)
)  # fmt: skip
spec("Qwen3MoeForCausalLM", "Qwen3MoeConfig", dict(HEADS8, **EXPERTS, **DENSE_FIRST))
spec("Qwen3MoeForCausalLM@normed_topk", "Qwen3MoeConfig", dict(HEADS8, **EXPERTS, norm_topk_prob=True))
spec(
    "PhiMoEForCausalLM", "PhimoeConfig", dict(GROUPED, **LOCAL, attention_bias=True, lm_head_bias=True),
    model="PhimoeForCausalLM", tolerance=FLOAT64,
)  # fmt: skip
spec("GptOssForCausalLM", "GptOssConfig", dict(HEADS8, **LOCAL, **LOCAL_FIRST))
spec("GptOssForCausalLM@narrow", "GptOssConfig", dict(NARROW, **LOCAL, **LOCAL_FIRST))
spec("MiniMaxM2ForCausalLM", "MiniMaxM2Config", dict(HEADS8, **LOCAL))
spec(
    "Ernie4_5_MoeForCausalLM", "Ernie4_5_MoeConfig",
    dict(GROUPED, moe_intermediate_size=16, moe_k=2, moe_num_experts=4, moe_num_shared_experts=1,
         moe_layer_start_index=1, use_bias=True),
)  # fmt: skip
spec(
    "Glm4MoeForCausalLM", "Glm4MoeConfig", dict(HEADS8, **DEEPSEEK, use_qk_norm=True, attention_bias=True)
)  # fmt: skip
spec(
    "GraniteMoeForCausalLM", "GraniteMoeConfig",
    dict(GROUPED, **LOCAL, attention_multiplier=0.35, residual_multiplier=0.5, embedding_multiplier=3.0),
)  # fmt: skip
spec(
    "AfmoeForCausalLM", "AfmoeConfig",
    dict(HEADS8, **EXPERTS, num_dense_layers=1, num_shared_experts=1, sliding_window=3, global_attn_every_n_layers=2,
         mup_enabled=True),
)  # fmt: skip
LAGUNA = dict(HEADS8, **EXPERTS, **LOCAL_FIRST, shared_expert_intermediate_size=16, moe_routed_scaling_factor=1.7)
spec("LagunaForCausalLM", "LagunaConfig", LAGUNA)
spec("LagunaForCausalLM@gate_per_element", "LagunaConfig", dict(LAGUNA, gating="per-element"))
JETMOE = dict(
    num_hidden_layers=N_LAYERS, hidden_size=D_MODEL, num_key_value_heads=2, kv_channels=8, intermediate_size=64,
    vocab_size=VOCAB, max_position_embeddings=N_CTX, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
)  # fmt: skip
spec("JetMoeForCausalLM", "JetMoeConfig", JETMOE, refused="JetMoeDecoderLayer")
spec("JetMoEForCausalLM", "JetMoeConfig", JETMOE, model="JetMoeForCausalLM", refused="JetMoeDecoderLayer")
spec(
    "Llama4ForCausalLM", "Llama4TextConfig",
    dict(HEADS8, **LOCAL, intermediate_size_mlp=64, interleave_moe_layer_step=2, no_rope_layers=[1, 0],
         attention_chunk_size=4, layer_types=["chunked_attention", "full_attention"]),
)  # fmt: skip

spec("DeepseekV2ForCausalLM", "DeepseekV2Config", dict(LATENT, **DEEPSEEK, head_dim=4))
spec("DeepseekV2ForCausalLM@no_q_lora", "DeepseekV2Config", dict(LATENT, **DEEPSEEK, head_dim=4, q_lora_rank=None))
spec("DeepseekV3ForCausalLM", "DeepseekV3Config", dict(LATENT, **DEEPSEEK))
spec(
    "DeepseekV3ForCausalLM@grouped_experts", "DeepseekV3Config",
    dict(LATENT, **dict(DEEPSEEK, n_routed_experts=8, n_group=4, topk_group=2), routed_scaling_factor=2.5,
         norm_topk_prob=True),
)  # fmt: skip
spec("YoutuForCausalLM", "YoutuConfig", LATENT)
spec("Glm4MoeLiteForCausalLM", "Glm4MoeLiteConfig", dict(LATENT, **DEEPSEEK))
spec(
    "GlmMoeDsaForCausalLM", "GlmMoeDsaConfig",
    dict(LATENT, **DEEPSEEK, head_dim=4, index_topk=4, index_head_dim=8, index_n_heads=2,
         mlp_layer_types=["dense", "sparse"]),
)  # fmt: skip
spec(
    "DeepseekV4ForCausalLM", "DeepseekV4Config",
    dict(without(PLAIN, "intermediate_size"), num_key_value_heads=1, head_dim=8, q_lora_rank=16,
         moe_intermediate_size=16, num_experts_per_tok=2, n_routed_experts=4, n_shared_experts=1, hc_mult=2,
         hc_sinkhorn_iters=3, sliding_window=4, o_groups=2, o_lora_rank=8, index_n_heads=2, index_head_dim=8,
         index_topk=2, partial_rotary_factor=0.5),
    refused="DeepseekV4DecoderLayer",
)  # fmt: skip
