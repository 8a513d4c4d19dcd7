"""Small dimensions of every kind of decoder, and of BERT."""

from __future__ import annotations

from dataclasses import replace

from perfmodel.models.dims import RopeScaling, TransformerDims
from perfmodel.models.dims_moe import MlaDims, MoeDims
from perfmodel.models.dims_rope import LinearRopeScaling, YarnRopeScaling

GPT2 = TransformerDims(
    family="decoder",
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    intermediate_size=80,
    max_position_embeddings=40,
    hidden_act="gelu_new",
    norm="layernorm",
    norm_eps=1e-5,
    position_embedding="learned",
    projection="conv1d",
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
)
LLAMA = TransformerDims(
    family="decoder",
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    intermediate_size=80,
    max_position_embeddings=64,
    hidden_act="silu",
    gated_mlp=True,
    norm="rmsnorm",
    norm_eps=1e-5,
    position_embedding="rope",
)
BERT = TransformerDims(
    family="encoder",
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    intermediate_size=80,
    max_position_embeddings=40,
    hidden_act="gelu",
    norm="layernorm",
    norm_eps=1e-12,
    position_embedding="learned",
    attention_bias=True,
    mlp_bias=True,
    tie_word_embeddings=True,
    type_vocab_size=2,
    pad_token_id=0,
)
LLAMA_31 = replace(
    LLAMA,
    rope_theta=500.0,
    rope_scaling=RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
)
#: The window is shorter than the sequences of the tests.
MISTRAL = replace(LLAMA, sliding_window=8)
QWEN2 = replace(LLAMA, head_dim=8, qkv_bias=True)
QWEN3 = replace(LLAMA, qk_norm="head")
OLMO2 = replace(
    LLAMA,
    head_dim=8,
    qk_norm="projection",
    norm="rmsnorm_float32",
    norm_placement="output",
    rope_in_float32=True,
    pad_token_id=1,
)
GEMMA2 = replace(
    LLAMA,
    num_hidden_layers=4,
    norm="rmsnorm_unit_offset",
    norm_placement="both",
    scale_embeddings=True,
    hidden_act="gelu_pytorch_tanh",
    sliding_window=8,
    full_attention_interval=2,
    attn_logit_softcapping=5.0,
    final_logit_softcapping=3.0,
    query_pre_attn_scalar=20,
    tie_word_embeddings=True,
    pad_token_id=0,
)
GEMMA3 = replace(
    GEMMA2,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    qk_norm="head",
    full_attention_interval=3,
    rope_local_base_freq=100.0,
    rope_scaling=LinearRopeScaling(factor=8.0),
)
PHI = replace(
    LLAMA,
    head_dim=8,
    norm="layernorm",
    hidden_act="gelu_new",
    gated_mlp=False,
    attention_bias=True,
    mlp_bias=True,
    lm_head_bias=True,
    block="parallel_shared_norm",
    partial_rotary_factor=0.5,
)
PHI3 = replace(LLAMA, head_dim=8, projection="fused")
GPT_NEOX = replace(
    PHI,
    num_key_value_heads=4,
    hidden_act="gelu",
    block="parallel",
    lm_head_bias=False,
    partial_rotary_factor=0.25,
    projection="fused_by_head",
)
OPT = replace(GPT2, projection="linear", hidden_act="relu", position_offset=2, pad_token_id=1)
MIXTRAL = replace(LLAMA, moe=MoeDims(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=80))
QWEN3_MOE = replace(
    QWEN3,
    num_hidden_layers=3,
    moe=MoeDims(
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=16,
        float32_weights=False,
        first_k_dense_replace=1,
    ),
)
GPT_OSS = replace(
    LLAMA,
    intermediate_size=24,
    num_hidden_layers=4,
    max_position_embeddings=512,
    norm="rmsnorm_float32",
    attention_bias=True,
    attention_sinks=True,
    sliding_window=8,
    full_attention_interval=2,
    rope_scaling=YarnRopeScaling(factor=32.0, original_max_position_embeddings=16, truncate=False),
    moe=MoeDims(
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        router="topk_softmax",
        norm_topk_prob=False,
        float32_weights=False,
        bias=True,
        swiglu_limit=0.7,
        swiglu_alpha=1.702,
    ),
)
DEEPSEEK_V3 = replace(
    LLAMA,
    num_hidden_layers=3,
    num_key_value_heads=4,
    head_dim=24,
    max_position_embeddings=640,
    rope_scaling=YarnRopeScaling(factor=40.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0),
    mla=MlaDims(kv_lora_rank=16, q_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12),
    moe=MoeDims(
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=32,
        first_k_dense_replace=1,
        router="sigmoid",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
    ),
)
DEEPSEEK_DIRECT = replace(
    DEEPSEEK_V3,
    rope_scaling=None,
    mla=MlaDims(
        kv_lora_rank=16,
        q_lora_rank=None,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        rope_interleave=False,
    ),
)

#: One of each kind.
DECODERS = {
    "gpt2": GPT2,
    "opt": OPT,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "olmo2": OLMO2,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "phi": PHI,
    "phi3": PHI3,
    "gpt-neox": GPT_NEOX,
    "mixtral": MIXTRAL,
    "qwen3-moe": QWEN3_MOE,
    "gpt-oss": GPT_OSS,
    "deepseek-v3": DEEPSEEK_V3,
}
