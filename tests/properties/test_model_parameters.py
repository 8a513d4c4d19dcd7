"""The count formulas against the modules, for any dimensions."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from perfmodel.models.build import build  # noqa: E402
from perfmodel.models.dims import TransformerDims  # noqa: E402
from perfmodel.models.dims_moe import MlaDims, MoeDims  # noqa: E402

sizes = st.integers(min_value=1, max_value=12)
NORMS = ["layernorm", "rmsnorm", "rmsnorm_float32", "rmsnorm_unit_offset"]


@st.composite
def encoders(draw: st.DrawFn) -> TransformerDims:
    groups, biases = draw(st.integers(1, 4)), draw(st.booleans())
    return TransformerDims(
        family="encoder",
        vocab_size=draw(sizes),
        hidden_size=draw(sizes),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=groups * draw(st.integers(1, 3)),
        num_key_value_heads=groups,
        head_dim=2 * draw(sizes),
        intermediate_size=draw(sizes),
        max_position_embeddings=draw(sizes),
        hidden_act="relu",
        norm=draw(st.sampled_from(NORMS[:2])),
        norm_eps=1e-5,
        position_embedding="learned",
        gated_mlp=draw(st.booleans()),
        attention_bias=biases,
        mlp_bias=biases,
        tie_word_embeddings=draw(st.booleans()),
        type_vocab_size=draw(st.integers(0, 2)),
    )


@st.composite
def decoders(draw: st.DrawFn) -> TransformerDims:
    groups = draw(st.integers(1, 4))
    projection = draw(st.sampled_from(["linear", "linear", "conv1d", "fused", "fused_by_head"]))
    plain = projection == "linear"
    mla = draw(latent()) if plain and draw(st.booleans()) else None
    moe = draw(mixtures()) if projection != "conv1d" and draw(st.booleans()) else None
    alike = projection in ("conv1d", "fused_by_head") or mla is not None
    bias = projection == "conv1d" or (mla is None and draw(st.booleans()))
    block = draw(st.sampled_from(["sequential", "parallel", "parallel_shared_norm"]))
    rope = mla is not None or draw(st.booleans())
    return TransformerDims(
        family="decoder",
        vocab_size=draw(sizes),
        hidden_size=draw(sizes),
        num_hidden_layers=draw(st.integers(1, 4)),
        num_attention_heads=groups if alike else groups * draw(st.integers(1, 3)),
        num_key_value_heads=groups,
        head_dim=mla.qk_head_dim if mla else 2 * draw(sizes),
        intermediate_size=draw(sizes),
        max_position_embeddings=draw(sizes),
        hidden_act="relu",
        norm=draw(st.sampled_from(NORMS)),
        norm_eps=1e-5,
        norm_placement=draw(st.sampled_from(["input", "output", "both"])) if block == "sequential" else "input",
        block=block,
        position_embedding="rope" if rope else "learned",
        position_offset=0 if rope else draw(st.integers(0, 3)),
        gated_mlp=moe is not None or (projection != "conv1d" and draw(st.booleans())),
        attention_bias=bias,
        qkv_bias=plain and mla is None and not bias and draw(st.booleans()),
        mlp_bias=projection == "conv1d" or draw(st.booleans()),
        lm_head_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        projection=projection,
        qk_norm=draw(st.sampled_from([None, "head", "projection"])) if plain and mla is None else None,
        attention_sinks=mla is None and draw(st.booleans()),
        moe=moe,
        mla=mla,
    )


@st.composite
def mixtures(draw: st.DrawFn) -> MoeDims:
    count, bias = draw(st.integers(1, 5)), draw(st.booleans())
    router = draw(st.sampled_from(["softmax", "topk_softmax", *(["sigmoid"] if count > 1 and not bias else [])]))
    return MoeDims(
        num_experts=count,
        num_experts_per_tok=draw(st.integers(1, count)),
        moe_intermediate_size=draw(sizes),
        shared_expert_intermediate_size=draw(st.integers(0, 5)),
        first_k_dense_replace=draw(st.integers(0, 2)),
        decoder_sparse_step=draw(st.integers(1, 2)),
        router=router,
        bias=bias,
    )


@st.composite
def latent(draw: st.DrawFn) -> MlaDims:
    return MlaDims(
        kv_lora_rank=draw(sizes),
        q_lora_rank=draw(st.none() | sizes),
        qk_nope_head_dim=draw(sizes),
        qk_rope_head_dim=2 * draw(sizes),
        v_head_dim=draw(sizes),
    )


@given(dims=encoders() | decoders())
@settings(max_examples=80, deadline=None)
def test_formulas_equal_the_module(dims: TransformerDims) -> None:
    module, _ = build(dims)
    named = dict(module.named_parameters())
    assert dims.parameters() == sum(parameter.numel() for parameter in named.values())
    # Matrices of layers, the head, an encoder's transform: all matrices but the embeddings, a tied one
    # included; of experts, which are in three dimensions, as many as a token goes to.
    layers = [(name, p) for name, p in named.items() if name.startswith("layers.") and not name.endswith("bias")]
    matrices = sum(p.numel() for _, p in layers if p.dim() == 2)
    experts = sum(p.numel() for _, p in layers if p.dim() == 3)
    active = dims.moe.num_experts_per_tok * experts // dims.moe.num_experts if dims.moe is not None else 0
    transform = named["head.dense.weight"].numel() if dims.family == "encoder" else 0
    assert dims.matmul_parameters() == matrices + active + dims.vocab_size * dims.hidden_size + transform
    assert TransformerDims.from_dict(dims.to_dict()) == dims
