"""Small models of other kinds than :mod:`tests.models.pairs` in both implementations, with the same weights."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch

from perfmodel.models import catalogue
from perfmodel.models.build import build
from perfmodel.models.dims_encoder_decoder import EncoderDecoderDims
from perfmodel.models.dims_speech import SpeechDims
from perfmodel.models.dims_vision import VisionDims
from perfmodel.models.inputs import batch_inputs
from perfmodel.models.stacks import ModelDims

SIZES = {"batch": 3, "seq": 24, "target_seq": 18}

T5 = EncoderDecoderDims(
    vocab_size=97, d_model=32, d_kv=12, d_ff=80, num_layers=3, num_decoder_layers=2, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=16, dropout_rate=0.0,
)  # fmt: skip
FLAN = dataclasses.replace(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
WHISPER = SpeechDims(
    vocab_size=97, d_model=32, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=80, decoder_layers=2,
    decoder_attention_heads=2, decoder_ffn_dim=72, num_mel_bins=10, max_source_positions=20, max_target_positions=30,
    pad_token_id=95, decoder_start_token_id=96,
)  # fmt: skip
VIT = VisionDims(
    image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80,
    num_labels=11,
)  # fmt: skip
ROBERTA: Any = dataclasses.replace(
    catalogue.get("roberta-base").dims.with_depths({"layers": 2}),  # type: ignore[type-var]
    vocab_size=97, hidden_size=32, num_attention_heads=4, num_key_value_heads=4, head_dim=8, intermediate_size=80,
    max_position_embeddings=30, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
)  # fmt: skip

#: dims, and whether the source comes with an attention mask
CASES: dict[str, tuple[Any, bool]] = {
    "t5": (T5, False),
    "t5-padded": (T5, True),
    "flan-t5": (FLAN, False),
    "whisper": (WHISPER, False),
    "vit": (VIT, False),
    "roberta": (ROBERTA, True),
    "vit-plain-qkv": (dataclasses.replace(VIT, qkv_bias=False), False),
}
DROPPED: dict[str, Any] = {
    "t5": dataclasses.replace(T5, dropout_rate=0.2),
    "flan-t5": dataclasses.replace(FLAN, dropout_rate=0.2),
    "whisper": dataclasses.replace(WHISPER, dropout=0.1, attention_dropout=0.2, activation_dropout=0.3),
    "vit": dataclasses.replace(VIT, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2),
}

#: Replacements that turn a Hugging Face parameter's name into ours, in order, by family.
_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "encoder-decoder": (
        (r"^shared\.", "embed_tokens."),
        (r"\.block\.", ".layers."),
        (r"\.layer\.0\.SelfAttention\.relative_attention_bias\.", ".attention.bias."),
        (r"\.layer\.0\.SelfAttention\.(.)\.", r".attention.\1_proj."),
        (r"\.layer\.0\.layer_norm\.", ".attention_norm."),
        (r"\.layer\.1\.EncDecAttention\.(.)\.", r".cross_attention.\1_proj."),
        (r"^(decoder.*)\.layer\.1\.layer_norm\.", r"\1.cross_attention_norm."),
        (r"\.layer\.\d\.layer_norm\.", ".mlp_norm."),
        (r"\.layer\.\d\.DenseReluDense\.wi_0\.", ".mlp.gate_proj."),
        (r"\.layer\.\d\.DenseReluDense\.wi(_1)?\.", ".mlp.up_proj."),
        (r"\.layer\.\d\.DenseReluDense\.wo\.", ".mlp.down_proj."),
        (r"\.final_layer_norm\.", ".norm."),
    ),
    "speech": (
        (r"^model\.", ""),
        (r"^proj_out\.", "lm_head."),
        (r"\.self_attn_layer_norm\.", ".attention_norm."),
        (r"\.encoder_attn_layer_norm\.", ".cross_attention_norm."),
        (r"\.final_layer_norm\.", ".mlp_norm."),
        (r"^(encoder|decoder)\.layer_norm\.", r"\1.norm."),
        (r"\.self_attn\.", ".attention."),
        (r"\.encoder_attn\.", ".cross_attention."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.fc1\.", ".mlp.up_proj."),
        (r"\.fc2\.", ".mlp.down_proj."),
    ),
    "encoder": (
        (r"^roberta\.embeddings\.word_embeddings\.", "embeddings.tokens."),
        (r"^roberta\.embeddings\.position_embeddings\.", "embeddings.places."),
        (r"^roberta\.embeddings\.token_type_embeddings\.", "embeddings.types."),
        (r"^roberta\.embeddings\.LayerNorm\.", "embeddings.norm."),
        (r"^roberta\.encoder\.layer\.", "layers."),
        (r"\.attention\.self\.(.)\w+\.", r".attention.\1_proj."),
        (r"\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
        (r"\.intermediate\.dense\.", ".mlp.up_proj."),
        (r"\.output\.dense\.", ".mlp.down_proj."),
        (r"\.output\.LayerNorm\.", ".mlp_norm."),
        (r"^lm_head\.layer_norm\.", "head.norm."),
        (r"^lm_head\.bias", "head.decoder.bias"),
        (r"^lm_head\.", "head."),
    ),
    "vision": (
        (r"^vit\.", ""),
        (r"\.cls_token", ".class_token"),
        (r"\.position_embeddings", ".places"),
        (r"\.patch_embeddings\.projection\.", ".patches."),
        (r"\.layernorm_before\.", ".attention_norm."),
        (r"\.layernorm_after\.", ".mlp_norm."),
        (r"^layernorm\.", "norm."),
        (r"\.fc1\.", ".up_proj."),
        (r"\.fc2\.", ".down_proj."),
    ),
}


def our_name(family: str, name: str) -> str:
    """The reference module's name of a Hugging Face parameter."""
    for theirs, ours in _NAMES[family]:
        name = re.sub(theirs, ours, name)
    return name


def pair(dims: ModelDims, dtype: str = "float32", **options: Any) -> tuple[Any, Any]:
    """(reference, Hugging Face) with the same random weights."""
    torch.manual_seed(0)
    theirs, _ = build(dims, implementation="huggingface", dtype=dtype, device="cpu", **options)
    ours, _ = build(dims, implementation="reference", dtype=dtype, device="cpu", **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} if dims.family == "encoder-decoder" else set()
    weights = {our_name(dims.family, name): value for name, value in theirs.state_dict().items() if name not in tied}
    ours.load_state_dict(weights, strict=True)
    return ours, theirs


def batch(dims: ModelDims, dtype: str = "float32", *, padded: bool = False) -> dict[str, Any]:
    """One batch; some labels of texts don't count."""
    generator = torch.Generator().manual_seed(1)
    inputs: dict[str, Any] = {}
    for name, (shape, kind) in batch_inputs(dims, dtype).items():
        sizes = [size if isinstance(size, int) else SIZES[size] for size in shape]
        if kind != "int64":
            inputs[name] = torch.randn(sizes, generator=generator).to(getattr(torch, kind))
            continue
        classes = getattr(dims, "vocab_size", None) or dims.num_labels  # type: ignore[attr-defined]
        inputs[name] = torch.randint(1, classes, sizes, generator=generator)
        if name == "labels" and len(sizes) > 1:
            inputs[name][torch.rand(sizes, generator=generator) < 0.3] = -100
    if padded:
        mask = torch.ones_like(inputs["input_ids"])
        mask[1, -5:] = 0
        inputs["attention_mask"] = mask
        pad = dims.pad_token_id  # type: ignore[attr-defined]
        inputs["input_ids"] = inputs["input_ids"].where(mask == 1, pad)
    return inputs
