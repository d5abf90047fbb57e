"""Attention between other mixers (state spaces, convolutions, linear attention), and models without any attention."""

from .zoo import D_MODEL, N_CTX, N_HEADS, N_LAYERS, VOCAB, spec
from .zoo_dense import GROUPED, HEADS8, PLAIN
from .zoo_experts import EXPERTS, LOCAL

MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8)
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)
LINEAR_FIRST = dict(layer_types=["linear_attention", "full_attention"])

spec("BambaForCausalLM", "BambaConfig", dict(GROUPED, **MAMBA, attn_layer_indices=[1]))
spec(
    "JambaForCausalLM", "JambaConfig",
    dict(GROUPED, num_experts=4, num_experts_per_tok=2, attn_layer_period=2, attn_layer_offset=1,
         expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False),
)  # fmt: skip
spec(
    "FalconH1ForCausalLM", "FalconH1Config",
    dict(GROUPED, **MAMBA, mamba_d_ssm=64, key_multiplier=0.7, attention_in_multiplier=1.3,
         attention_out_multiplier=0.6, ssm_in_multiplier=1.1, ssm_out_multiplier=0.8, mlp_multipliers=[0.9, 1.2],
         ssm_multipliers=[1.1, 0.9, 0.8, 1.2, 0.7], embedding_multiplier=2.0, lm_head_multiplier=0.5,
         mamba_rms_norm=True),
)  # fmt: skip
spec(
    "GraniteMoeHybridForCausalLM", "GraniteMoeHybridConfig",
    dict(GROUPED, **LOCAL, **MAMBA, shared_intermediate_size=32, layer_types=["mamba", "attention"],
         position_embedding_type="rope", attention_multiplier=0.35, residual_multiplier=0.5, embedding_multiplier=3.0),
)  # fmt: skip
spec(
    "Qwen3NextForCausalLM", "Qwen3NextConfig",
    dict(HEADS8, **EXPERTS, **LINEAR, **LINEAR_FIRST, shared_expert_intermediate_size=16, mlp_only_layers=[0]),
)  # fmt: skip
spec("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", dict(HEADS8, **LINEAR, **LINEAR_FIRST))
spec(
    "Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextConfig",
    dict(HEADS8, **EXPERTS, **LINEAR, **LINEAR_FIRST, shared_expert_intermediate_size=16),
)  # fmt: skip
spec(
    "OlmoHybridForCausalLM", "OlmoHybridConfig",
    dict(GROUPED, **dict(LINEAR, linear_num_key_heads=4), **LINEAR_FIRST),
)  # fmt: skip
LFM2 = dict(GROUPED, layer_types=["conv", "full_attention"], conv_bias=True)
spec("Lfm2ForCausalLM", "Lfm2Config", dict(LFM2, block_auto_adjust_ff_dim=False))
spec("Lfm2MoeForCausalLM", "Lfm2MoeConfig", dict(LFM2, **EXPERTS, num_dense_layers=1))
spec(
    "NemotronHForCausalLM", "NemotronHConfig",
    dict(hidden_size=D_MODEL, vocab_size=VOCAB, num_attention_heads=N_HEADS, num_key_value_heads=2, head_dim=8,
         intermediate_size=64, max_position_embeddings=N_CTX, layers_block_type=["mamba", "attention", "moe", "mlp"],
         ssm_state_size=8, mamba_num_heads=4, mamba_head_dim=16, n_groups=1, chunk_size=8, n_routed_experts=4,
         num_experts_per_tok=2, moe_intermediate_size=16, moe_shared_expert_intermediate_size=16,
         use_mamba_kernels=False, pad_token_id=0),
    refused="NemotronHBlock",
)  # fmt: skip
spec(
    "Zamba2ForCausalLM", "Zamba2Config",
    dict(PLAIN, num_key_value_heads=4, layers_block_type=["mamba", "hybrid"], mamba_d_state=8, n_mamba_heads=4,
         mamba_ngroups=1, chunk_size=8, use_mamba_kernels=False, num_mem_blocks=1, adapter_rank=4,
         use_shared_attention_adapter=True),
    refused="Zamba2HybridLayer",
)  # fmt: skip
spec(
    "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig",
    dict(num_hidden_layers=N_LAYERS, vocab_size=VOCAB, hidden_size=D_MODEL, intermediate_size=64,
         num_attention_heads=N_HEADS, num_key_value_heads=2, lru_width=D_MODEL, attention_window_size=4,
         block_types=["recurrent", "attention"], pad_token_id=0),
    refused="RecurrentGemmaDecoderLayer",
)  # fmt: skip

NONE = dict(num_hidden_layers=N_LAYERS, hidden_size=D_MODEL, vocab_size=VOCAB)
spec("MambaForCausalLM", "MambaConfig", dict(NONE, state_size=8), refused="no layer with attention")
spec("FalconMambaForCausalLM", "FalconMambaConfig", dict(NONE, state_size=8), refused="no layer with attention")
spec(
    "Mamba2ForCausalLM", "Mamba2Config", dict(NONE, state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=8),
    refused="no layer with attention",
)  # fmt: skip
spec("RwkvForCausalLM", "RwkvConfig", dict(NONE, context_length=N_CTX), refused="no layer with attention")
