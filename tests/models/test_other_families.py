"""Families that aren't decoders or encoders: formulas, plain values, what is refused, closed forms."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from perfmodel.errors import ShapeError, UnknownNameError, UnsupportedError
from perfmodel.models import catalogue
from perfmodel.models.config_encoder_decoder import from_huggingface as t5_from
from perfmodel.models.config_resnet import from_huggingface as resnet_from
from perfmodel.models.config_speech import from_huggingface as whisper_from
from perfmodel.models.config_vision import from_huggingface as vit_from
from perfmodel.models.dims_encoder_decoder import EncoderDecoderDims
from perfmodel.models.dims_nets import FeedForwardDims, RecurrentDims, TranslatorDims
from perfmodel.models.dims_pretraining import PretrainingDims
from perfmodel.models.dims_recommender import RecommenderDims
from perfmodel.models.dims_resnet import ResNetDims
from perfmodel.models.dims_speech import SpeechDims
from perfmodel.models.dims_vision import VisionDims
from perfmodel.models.families import FAMILIES, dims_from_dict
from perfmodel.models.inputs import SYMBOLS, batch_inputs

T5 = EncoderDecoderDims(vocab_size=97, d_model=32, d_kv=12, d_ff=80, num_layers=3, num_decoder_layers=2, num_heads=4)
VIT = VisionDims(
    image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80,
    num_labels=11,
)  # fmt: skip
WHISPER = SpeechDims(
    vocab_size=97, d_model=32, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=80, decoder_layers=2,
    decoder_attention_heads=2, decoder_ffn_dim=72, num_mel_bins=10, max_source_positions=20, max_target_positions=30,
    pad_token_id=95, decoder_start_token_id=96,
)  # fmt: skip
BERT = dataclasses.replace(
    catalogue.get("bert-base-uncased").dims.with_depths({"layers": 2}),  # type: ignore[type-var]
    vocab_size=97, hidden_size=24, num_attention_heads=4, num_key_value_heads=4, head_dim=6, intermediate_size=30,
    max_position_embeddings=16, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
)  # fmt: skip
PRETRAINING = PretrainingDims(encoder=BERT, max_predictions_per_seq=5)  # type: ignore[arg-type]
RESNET = ResNetDims(block="bottleneck", depths=(2, 1, 2), num_labels=7, image_size=33, width=8)
BASIC = dataclasses.replace(RESNET, block="basic")
LSTM = RecurrentDims(cell="lstm", vocab_size=31, embedding_size=6, hidden_size=10, num_hidden_layers=2)
GRU = RecurrentDims(
    cell="gru", vocab_size=31, embedding_size=10, hidden_size=10, num_hidden_layers=3, tie_word_embeddings=True
)
TRANSLATOR = TranslatorDims(
    vocab_size=41, target_vocab_size=31, d_model=16, nhead=2, num_encoder_layers=2, num_decoder_layers=3,
    dim_feedforward=24, max_position_embeddings=20, dropout=0.0,
)  # fmt: skip
MLP = FeedForwardDims(in_features=12, hidden_sizes=(9, 7), num_labels=3)
DLRM = RecommenderDims(
    num_dense_features=5, table_sizes=(30, 7, 12), embedding_size=4, bottom_sizes=(8, 4), top_sizes=(6, 1)
)

DIMS: dict[str, Any] = {
    "t5": T5,
    "flan-t5": dataclasses.replace(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "vit": VIT,
    "vit-plain-qkv": dataclasses.replace(VIT, qkv_bias=False),
    "whisper": WHISPER,
    "bert-pretraining": PRETRAINING,
    "bert-one-task": dataclasses.replace(PRETRAINING, next_sentence=False),
    "resnet": RESNET,
    "resnet-basic": BASIC,
    "lstm": LSTM,
    "gru-tied": GRU,
    "translator": TRANSLATOR,
    "mlp": MLP,
    "dlrm": DLRM,
}


@pytest.mark.parametrize("name", DIMS)
def test_the_formula_counts_the_module(name: str) -> None:
    pytest.importorskip("torch")
    from perfmodel.models.build import build

    module, stacks = build(DIMS[name])
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == DIMS[name].parameters()
    depths = {stack.path: stack.depth for stack in DIMS[name].stacks}
    assert {path: len(module.get_submodule(place)) for path, place in stacks.items()} == depths


@pytest.mark.parametrize("name", DIMS)
def test_plain_values_there_and_back(name: str) -> None:
    import json

    dims = DIMS[name]
    plain = json.loads(json.dumps(dims.to_dict()))
    assert plain == dims.to_dict()
    assert dims_from_dict(plain) == dims


@pytest.mark.parametrize("name", DIMS)
def test_depths_change_the_named_stacks_only(name: str) -> None:
    dims = DIMS[name]
    for stack in dims.stacks:
        changed = {s.path: s.depth for s in dims.with_depths({stack.path: stack.depth + 3}).stacks}
        assert changed == {s.path: s.depth + 3 * (s is stack or s == stack) for s in dims.stacks}
    assert dims.with_depths({s.path: s.depth for s in dims.stacks}) == dims


@pytest.mark.parametrize("name", DIMS)
def test_a_step_runs_and_reaches_every_parameter(name: str) -> None:
    torch = pytest.importorskip("torch")
    from perfmodel.models.build import build

    torch.manual_seed(0)
    module, _ = build(DIMS[name], device="cpu")
    sizes = {"batch": 3, "seq": 12, "target_seq": 9}
    inputs = {}
    for key, (shape, dtype) in batch_inputs(DIMS[name]).items():
        numbers = [size if isinstance(size, int) else sizes[size] for size in shape]
        is_flag = key in ("token_type_ids", "next_sentence_label", "attention_mask") or name == "dlrm"
        whole = torch.randint(0, 2 if is_flag else 3, numbers)
        inputs[key] = whole if dtype == "int64" else (whole.float() if key == "labels" else torch.rand(numbers))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module(**inputs).loss.backward()
    for key, parameter in module.named_parameters():
        if parameter.requires_grad:
            moved = not torch.equal(parameter, before[key]) if key.startswith("tables.") else parameter.grad is not None
            assert moved, key


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_of_inputs_are_symbols_numbers_or_dimensions(family: str) -> None:
    found = [dims for dims in (catalogue.get(name).dims for name in catalogue.names()) if dims.family == family]
    assert found
    for shape, dtype in batch_inputs(found[0], "bfloat16").values():
        assert dtype in ("int64", "float32", "bfloat16")
        assert all(size in SYMBOLS or (isinstance(size, int) and size > 0) for size in shape)


@pytest.mark.parametrize(
    ("dims", "changes", "message"),
    [
        (T5, {"d_ff": 0}, "d_ff=0 must be a positive integer"),
        (T5, {"feed_forward_proj": "gated"}, "unknown feed_forward_proj 'gated'"),
        (T5, {"dropout_rate": 1.0}, "dropout_rate=1.0 is no dropout probability"),
        (VIT, {"patch_size": 5}, "patch_size=5 doesn't divide image_size=32"),
        (VIT, {"hidden_act": "tanh"}, "unknown hidden_act 'tanh'"),
        (WHISPER, {"pad_token_id": 97}, "pad_token_id=97 is no token; give one below vocab_size=97"),
        (WHISPER, {"decoder_attention_heads": 3}, "decoder_attention_heads=3 doesn't divide d_model=32"),
        (PRETRAINING, {"encoder": catalogue.get("gpt2").dims}, "give one of family 'encoder'"),
        (RESNET, {"block": "wide"}, "unknown block 'wide'"),
        (RESNET, {"depths": ()}, "has no stage"),
        (LSTM, {"tie_word_embeddings": True}, "tied embeddings need embedding_size=6 to be hidden_size=10"),
        (TRANSLATOR, {"nhead": 3}, "multiple of nhead=3"),
        (MLP, {"hidden_sizes": (4, 0)}, "hidden_sizes=0 must be a positive integer"),
        (DLRM, {"bottom_sizes": (8, 5)}, r"must end with 4; add a layer"),
        (DLRM, {"table_sizes": ()}, "has no table"),
    ],
)
def test_values_that_make_no_model_are_refused(dims: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((UnsupportedError, UnknownNameError), match=message):
        dataclasses.replace(dims, **changes)


def test_plain_values_that_make_no_model_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'d_modle'; did you mean 'd_model'"):
        EncoderDecoderDims.from_dict({"d_modle": 3})
    with pytest.raises(UnsupportedError, match="lacks in_features, hidden_sizes; give them"):
        FeedForwardDims.from_dict({"num_labels": 3})
    with pytest.raises(UnsupportedError, match="version 7"):
        FeedForwardDims.from_dict({**MLP.to_dict(), "version": 7})
    with pytest.raises(UnsupportedError, match="family 'resnet'"):
        FeedForwardDims.from_dict({**MLP.to_dict(), "family": "resnet"})
    with pytest.raises(UnknownNameError, match="layer stack"):
        MLP.with_depths({"layers": 3})


def test_dims_from_configs_of_hugging_face() -> None:
    t5 = t5_from({"model_type": "t5", "d_model": 512, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False})
    assert (t5.num_decoder_layers, t5.gated, t5.tie_word_embeddings) == (6, True, False)
    config = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
    decoder = {"decoder_layers": 32, "decoder_attention_heads": 20, "decoder_ffn_dim": 5120, "vocab_size": 51866}
    whisper = whisper_from({**config, **decoder, "num_mel_bins": 128, "pad_token_id": 50256, "architectures": ["x"]})
    assert whisper.parameters() == catalogue.get("whisper-large-v3").parameters
    vit = vit_from({"model_type": "vit", "id2label": {str(n): "a" for n in range(1000)}, "layer_norm_eps": 1e-12})
    assert vit == catalogue.get("google/vit-base-patch16-224").dims
    resnet = {"hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck", "depths": [3, 8, 36, 3]}
    labels = {"id2label": {str(n): "a" for n in range(1000)}}
    assert resnet_from({**resnet, **labels}) == catalogue.get("resnet-152").dims
    with pytest.raises(UnsupportedError, match="downsample_in_bottleneck=True"):
        resnet_from({**resnet, "downsample_in_bottleneck": True})


def test_sequences_beyond_the_positions_are_refused() -> None:
    torch = pytest.importorskip("torch")
    from perfmodel.models.build import build

    def ids(length: int) -> Any:
        return torch.zeros(1, length, dtype=torch.long)

    with pytest.raises(ShapeError, match="31 tokens is longer than the 30 learned positions; give at most 30"):
        build(WHISPER, device="cpu")[0](torch.zeros(1, 10, 40), ids(31))
    with pytest.raises(ShapeError, match="21 tokens is longer than 20 positions"):
        build(TRANSLATOR, device="cpu")[0](ids(4), ids(21))
    with pytest.raises(ShapeError, match="17 tokens"):
        build(PRETRAINING, device="cpu")[0](ids(17), ids(5), ids(5))


@pytest.mark.parametrize("name", ["lstm", "mlp", "translator", "dlrm"])
def test_nets_without_layers_of_ours_recompute_none(name: str) -> None:
    pytest.importorskip("torch")
    from perfmodel.models.build import build

    with pytest.raises(UnsupportedError, match="can't recompute its layers; set gradient_checkpointing=False"):
        build(DIMS[name], gradient_checkpointing=True)
