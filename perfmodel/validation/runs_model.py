"""The model of a measured run: dimensions, types and optimizer, from what its record says.

What the schema has no field for is the same for every run: RMSNorm where positions are rotary,
LayerNorm elsewhere; separate projections of query, key and value; no dropout, but BERT's 0.1 (Devlin et
al. 2019, appendix A.2); experts chosen by softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

from perfmodel.errors import UnsupportedError
from perfmodel.models.catalogue import ModelEntry
from perfmodel.models.dims import TransformerDims
from perfmodel.models.dims_moe import MlaDims, MoeDims
from perfmodel.models.dims_pretraining import PretrainingDims
from perfmodel.models.stacks import ModelDims
from perfmodel.validation.runs_schema import Mixture, Model, Record

__all__ = ["Trained", "trained"]

#: Hugging Face's names of activations; a gate is told apart by ``gated_mlp``.
_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "swiglu": "silu", "silu": "silu", "geglu": "gelu"}
_POSITIONS = {"learned": "learned", "rope": "rope", "alibi": "learned", "learned (alibi later)": "learned"}
_ATTENTION = {"causal": "decoder", "bidirectional": "encoder"}
#: PyTorch's names of the types in which the products are captured.
_DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
#: The first word of how sources name their optimizers.
_OPTIMIZERS = {
    "adam": "adamw", "adamw": "adamw", "adam_pax": "adamw", "decoupledadamw": "adamw", "fusedadamw": "adamw",
    "lamb": "lamb", "muon": "muon", "sgd": "sgd", "lion": "lion", "adafactor": "adafactor",
}  # fmt: skip
_NO_OPTIMIZER = ("none", "unstated")
#: BERT's recipe: 20 masked positions of 128 and 80 of 512 (google-research/bert, README, max_predictions_per_seq).
_MASKED = 20 / 128
_BERT_DROPOUT = 0.1
#: Has no effect on rotary positions; one number lets runs of several lengths share a graph.
_ROTARY_LENGTH = 2**17
#: How far the parameters may be from what the source says before a note tells.
_PARAMETERS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run trains.

    Attributes
    ----------
    entry : ModelEntry
        With the type of the weights that take part in the products.
    optimizer : str or None
    notes : tuple of str
        What was chosen or left out.
    """

    entry: ModelEntry
    optimizer: str | None
    notes: tuple[str, ...] = ()


def trained(record: Record) -> Trained:
    """Model and optimizer of a run.

    Raises
    ------
    UnsupportedError
        Where the reference modules, or the types that are captured, don't have what the run did.
    """
    if record.task == "lora":
        raise UnsupportedError("trains LoRA adapters, and neither their rank nor their targets are in the schema")
    if record.precision not in _DTYPES:
        raise UnsupportedError(
            f"products in {record.precision}; a step is captured with products in {', '.join(_DTYPES)} only"
        )
    notes: list[str] = []
    dims = _dims(record, notes)
    count, said = dims.parameters(), record.model.params
    if said and abs(count / said - 1) > _PARAMETERS:
        notes.append(f"its dimensions make {count / 1e9:.4g}e9 parameters, the source says {said / 1e9:.4g}e9")
    entry = ModelEntry(
        name=record.model.name,
        aliases=(),
        dims=dims,
        dtype=_DTYPES[record.precision],
        parameters=count,
        source="a measured run",
    )
    return Trained(entry=entry, optimizer=_optimizer(record, notes), notes=tuple(notes))


def _optimizer(record: Record, notes: list[str]) -> str | None:
    words = record.optimizer.lower().replace(":", " ").split()
    word = words[0] if words else ""
    if word in _NO_OPTIMIZER:
        if word == "unstated":
            notes.append("optimizer not stated: none is counted")
        return None
    if word not in _OPTIMIZERS:
        raise UnsupportedError(f"optimizer {record.optimizer!r} isn't known; known are {', '.join(_OPTIMIZERS)}")
    return _OPTIMIZERS[word]


def _dims(record: Record, notes: list[str]) -> ModelDims:
    model = record.model
    for name, value, known in (
        ("activation", model.activation, _ACTIVATIONS),
        ("pos_embedding", model.pos_embedding, _POSITIONS),
        ("attention", model.attention, _ATTENTION),
    ):
        if value not in known:
            raise UnsupportedError(
                f"{name} {value!r} isn't one of the reference modules'; known are {', '.join(known)}"
            )
    if model.pos_embedding == "alibi":
        notes.append("ALiBi's bias of the scores is left out, a table of learned positions is in its place")
    if model.mtp_layers:
        notes.append(f"{model.mtp_layers} layer of multi-token prediction is left out")
    family = _ATTENTION[model.attention]
    dims = _transformer(model, family)
    if family == "decoder" or record.task == "forward_backward":
        return dims
    return PretrainingDims(
        encoder=dims, max_predictions_per_seq=_predictions(record, notes), next_sentence=record.task == "pretrain"
    )


def _predictions(record: Record, notes: list[str]) -> int:
    model = record.model
    if record.task != "pretrain":
        notes.append("the task's own head is counted as the masked-token head at one position")
        return 1
    if model.mlm_positions_per_seq is not None:
        return model.mlm_positions_per_seq
    chosen = round(model.seq_len * _MASKED)
    notes.append(f"masked positions not stated: {chosen} of {model.seq_len}, as in BERT's recipe")
    return chosen


def _transformer(model: Model, family: str) -> TransformerDims:
    encoder = family == "encoder"
    rotary = _POSITIONS[model.pos_embedding] == "rope"
    mla = None
    if model.mla is not None:
        mla = MlaDims(
            kv_lora_rank=model.mla.kv_lora,
            q_lora_rank=model.mla.q_lora,
            qk_nope_head_dim=model.mla.qk_nope,
            qk_rope_head_dim=model.mla.qk_rope,
            v_head_dim=model.mla.v,
        )
    return TransformerDims.from_dict(
        {
            "family": family,
            "vocab_size": model.vocab,
            "hidden_size": model.hidden,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": None if mla is not None else model.kv_heads,
            "head_dim": None if mla is not None else model.head_dim,
            "intermediate_size": model.ffn,
            "max_position_embeddings": _ROTARY_LENGTH if rotary else model.seq_len,
            "hidden_act": _ACTIVATIONS[model.activation],
            "gated_mlp": model.gated_mlp,
            "norm": "rmsnorm" if rotary else "layernorm",
            "norm_eps": 1e-5,
            "position_embedding": "rope" if rotary else "learned",
            "attention_bias": model.bias,
            "mlp_bias": model.bias,
            "tie_word_embeddings": model.tied_embeddings,
            "type_vocab_size": 2 if encoder else 0,
            **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), _BERT_DROPOUT if encoder else 0.0),
            "moe": None if model.moe is None else _mixture(model.moe),
            "mla": mla,
        }
    )


def _mixture(moe: Mixture) -> MoeDims:
    return MoeDims(
        num_experts=moe.experts,
        num_experts_per_tok=moe.top_k,
        moe_intermediate_size=moe.moe_ffn,
        shared_expert_intermediate_size=moe.shared_experts * moe.shared_ffn,
        first_k_dense_replace=moe.dense_layers,
    )
