"""The dimensions that say what a decoder or an encoder is, without PyTorch.

Names are those of Hugging Face's configs where a config has one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.models import counts
from perfmodel.models.checks import check_choice, check_flags, check_number, check_probability, check_size
from perfmodel.models.combinations import check_combination
from perfmodel.models.dims_moe import MlaDims, MoeDims
from perfmodel.models.dims_rope import AnyRopeScaling, RopeScaling, rope_scaling_from_dict
from perfmodel.models.stacks import LayerStack

__all__ = ["HIDDEN_ACTS", "RopeScaling", "TransformerDims"]

#: Activations that the reference modules know, by their Hugging Face names.
HIDDEN_ACTS = ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")

_CHOICES = {
    "family": ("decoder", "encoder"),
    "hidden_act": HIDDEN_ACTS,
    "norm": ("layernorm", "rmsnorm", "rmsnorm_float32", "rmsnorm_unit_offset"),
    "norm_placement": ("input", "output", "both"),
    "block": ("sequential", "parallel", "parallel_shared_norm"),
    "position_embedding": ("learned", "rope"),
    "projection": ("linear", "conv1d", "fused", "fused_by_head"),
}
_POSITIVE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings",
)  # fmt: skip
_FLAGS = (
    "gated_mlp", "attention_bias", "mlp_bias", "tie_word_embeddings", "qkv_bias", "lm_head_bias", "scale_embeddings",
    "attention_sinks", "rope_in_float32",
)  # fmt: skip
_PROBABILITIES = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
_NUMBERS = (
    "norm_eps", "rope_theta", "rope_local_base_freq", "partial_rotary_factor", "attn_logit_softcapping",
    "final_logit_softcapping",
)  # fmt: skip
#: Dimensions that are records, and what makes them of plain values.
_RECORDS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "rope_scaling": rope_scaling_from_dict,
    "moe": MoeDims.from_dict,
    "mla": MlaDims.from_dict,
}
_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerDims:
    """A transformer with a language-modelling head and its loss.

    Attributes
    ----------
    family : {"decoder", "encoder"}
        ``decoder``: causal attention, next-token loss (GPT-2, Llama, Mixtral, DeepSeek-V3).
        ``encoder``: post-norm layers, attention in both directions, masked-token loss (BERT).
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads : int
    num_key_value_heads : int
        Fewer than ``num_attention_heads`` is grouped-query attention.
    head_dim : int
        Width of one query head; ``num_attention_heads * head_dim`` need not be ``hidden_size``.
    intermediate_size : int
        Inner width of the feed-forward block, where it isn't routed.
    max_position_embeddings : int
        Longest sequence: a hard limit with learned positions, the trained length with rotary ones.
    hidden_act : str
        One of :data:`HIDDEN_ACTS`.
    gated_mlp : bool
        ``down(act(gate(x)) * up(x))`` instead of ``down(act(up(x)))``.
    norm : {"layernorm", "rmsnorm", "rmsnorm_float32", "rmsnorm_unit_offset"}
        ``rmsnorm`` multiplies by its weight in the model's type (Llama),
        ``rmsnorm_float32`` before rounding to it (OLMo-2, gpt-oss), and
        ``rmsnorm_unit_offset`` so too, by one plus the weight (Gemma).
    norm_eps : float
    norm_placement : {"input", "output", "both"}
        Norms before attention and feed-forward, on what they add to the residual (OLMo-2), or both (Gemma 2 and 3).
        Of decoders; an encoder norms the sum.
    block : {"sequential", "parallel", "parallel_shared_norm"}
        Whether feed-forward follows attention or both take the layer's input, with
        a norm each (GPT-NeoX) or one for both (Phi-2).
    attention_bias, mlp_bias : bool
        Whether the projections of the block have a bias.
    qkv_bias : bool
        A bias on query, key and value only (Qwen2).
    lm_head_bias : bool
        A bias on a decoder's head (Phi-2).
    tie_word_embeddings : bool
        Whether the head uses the weight of the token embedding.
    scale_embeddings : bool
        Token embeddings times the root of ``hidden_size`` (Gemma).
    position_embedding : {"learned", "rope"}
    position_offset : int
        Rows of the table before the first learned position (2 in OPT). An encoder with them numbers its
        tokens without padding, which gets the row before the first (RoBERTa).
    projection : {"linear", "conv1d", "fused", "fused_by_head"}
        ``conv1d`` is GPT-2's way: weights stored ``[in, out]``, and query, key
        and value in one product. ``fused``: one product for query, key and value and one for gate
        and up (Phi-3). ``fused_by_head``: query, key and value of a head side by side (GPT-NeoX).
    rope_theta : float
        Base of the rotary wavelengths.
    partial_rotary_factor : float
        Share of a head that is rotated.
    rope_scaling : RopeScaling, LinearRopeScaling or YarnRopeScaling, optional
    rope_local_base_freq : float, optional
        Base of layers with a sliding window, without scaling, where they have their own (Gemma 3).
    rope_in_float32 : bool
        Whether queries and keys are rotated in float32 (OLMo-2).
    sliding_window : int, optional
        Keys that a query sees, itself included.
    full_attention_interval : int, optional
        Every how manieth layer sees all keys in spite of the window (2 in Gemma 2 and gpt-oss, 6 in Gemma 3).
    qk_norm : {"head", "projection"}, optional
        Norms of queries and keys: of each head (Qwen3, Gemma 3) or over all heads (OLMo-2).
    query_pre_attn_scalar : int, optional
        Attention scores are divided by its root; ``head_dim`` if left out.
    attn_logit_softcapping, final_logit_softcapping : float, optional
        ``c * tanh(x / c)`` on attention scores and logits. Capped scores are materialised.
    attention_sinks : bool
        A trained logit a head that takes part in the softmax (gpt-oss). Scores are materialised.
    moe : MoeDims, optional
        Routed experts in place of the feed-forward block.
    mla : MlaDims, optional
        Latent attention.
    type_vocab_size : int
        Rows of the token-type (segment) embedding; 0 for none.
    pad_token_id : int, optional
        The row of the token embedding that gets no gradient.
    embd_pdrop, attn_pdrop, resid_pdrop : float
        Dropout on embeddings, on attention probabilities and on what each block
        adds to the residual. (BERT's ``hidden_dropout_prob`` is the first and
        the last, its ``attention_probs_dropout_prob`` the second.)

    Raises
    ------
    UnsupportedError
        If the values don't make a model; the message names the field.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    hidden_act: str
    norm: str
    norm_eps: float
    position_embedding: str
    gated_mlp: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    projection: str = "linear"
    rope_theta: float = 10000.0
    rope_scaling: AnyRopeScaling | None = None
    type_vocab_size: int = 0
    pad_token_id: int | None = None
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    norm_placement: str = "input"
    block: str = "sequential"
    qkv_bias: bool = False
    lm_head_bias: bool = False
    scale_embeddings: bool = False
    position_offset: int = 0
    partial_rotary_factor: float = 1.0
    rope_local_base_freq: float | None = None
    rope_in_float32: bool = False
    sliding_window: int | None = None
    full_attention_interval: int | None = None
    qk_norm: str | None = None
    query_pre_attn_scalar: int | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    attention_sinks: bool = False
    moe: MoeDims | None = None
    mla: MlaDims | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.qk_norm is not None:
            check_choice("qk_norm", self.qk_norm, ("head", "projection"))
        for name in _POSITIVE:
            check_size(name, getattr(self, name))
        for name in ("sliding_window", "full_attention_interval", "query_pre_attn_scalar"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        for name in ("type_vocab_size", "position_offset"):
            check_size(name, getattr(self, name), least=0)
        check_flags(self, _FLAGS)
        for name in _NUMBERS:
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        for name in _PROBABILITIES:
            check_probability(name, getattr(self, name))
        check_combination(self)

    # -- layers -------------------------------------------------------------------

    @property
    def rotary_dim(self) -> int:
        """How much of a head is rotated."""
        width = self.mla.qk_rope_head_dim if self.mla is not None else self.head_dim
        return int(width * self.partial_rotary_factor)

    def window(self, layer: int) -> int | None:
        """Keys that a query of the layer of this number, from 0, sees; ``None`` for all."""
        interval = self.full_attention_interval
        return None if interval is not None and (layer + 1) % interval == 0 else self.sliding_window

    def routes(self, layer: int) -> bool:
        """Whether the layer of this number, from 0, has experts."""
        return self.moe is not None and self.moe.routes(layer)

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The one stack of layers."""
        prefix = self.moe.first_k_dense_replace if self.moe is not None else 0
        period = math.lcm(self.full_attention_interval or 1, self.moe.decoder_sparse_step if self.moe else 1)
        return (LayerStack(path="layers", depth=self.num_hidden_layers, prefix=prefix, period=period),)

    @property
    def max_length(self) -> int | None:
        """Number of learned positions; rotary ones have no hard limit."""
        return self.max_position_embeddings if self.position_embedding == "learned" else None

    def with_depths(self, depths: Mapping[str, int]) -> TransformerDims:
        """The same model with another number of layers."""
        return dataclasses.replace(self, num_hidden_layers=depths["layers"])

    # -- counts -----------------------------------------------------------------

    def parameters(self) -> int:
        r"""Trainable numbers of the model with its language-modelling head.

        With V vocabulary, H hidden, L layers, A heads, K key-value heads, d
        head width, F intermediate, P positions and T token types, and with
        norm(x) = 2x (layernorm) or x (rmsnorm)::

            attention  = H d (2A + 2K)        + d (A + 2K) + H   with bias, without H where on qkv only
                         + 2 norm(d) or norm(A d) + norm(K d)    with qk_norm
                         + A                                     with sinks
            mlp        = 2 H F, gated 3 H F   + F + H, gated 2F + H   with bias
            layer      = attention + mlp + 2 norm(H)     (4 with norm_placement="both", 1 if shared)
            embeddings = V H + P H (learned) + T H
            decoder    = embeddings + L layer + norm(H) + V H (0 if tied) + V (with lm_head_bias)
            encoder    = embeddings + norm(H) + L layer + (H² + H + norm(H)) + V H (0 if tied) + V

        Layers with E experts of width M and shared ones of width S have instead of mlp::

            experts    = H E + 3 H (E M + S)  + E (1 + 2M + H), and 2S + H for the shared ones, with bias

        and latent attention of ranks q and c, with head parts n and r and value heads v::

            attention  = H q + q + q A (n + r) + H (c + r) + c + c A (n + v) + A v H

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("gpt2").dims.parameters()
        124439808
        """
        return counts.parameters(self)

    def matmul_parameters(self) -> int:
        """Weights that take part in a token's matrix products: the N of 6N.

        Those of every layer, of routed experts as many as a token goes to, the head
        once (tied or not), and an encoder's transform before its head; no
        embedding, bias or norm.

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("llama-2-7b").dims.matmul_parameters()
        6607077376
        """
        return counts.matmul_parameters(self)

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step, ``tokens * (6 N + 12 L H Q T)``.

        N: parameters in matrix products, the head once and embeddings not; L layers,
        H heads, Q head size, T sequence length (Chowdhery et al. 2022, PaLM, appendix
        B). Forward and backward; causal attention by its full square. Where value
        heads are of another width, Q is the mean of the two.
        """
        return counts.closed_form_flops(self, bindings)

    # -- other forms --------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML; :meth:`from_dict` is the inverse."""
        return {"version": _VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TransformerDims:
        """Dimensions from plain values.

        ``num_key_value_heads`` may be left out (as many as heads), and so may
        ``head_dim`` (``hidden_size`` over heads, or what latent attention says), as in Hugging
        Face's configs.

        Raises
        ------
        UnknownNameError
            For a key that isn't a dimension.
        UnsupportedError
            For a missing dimension, another version, or values that don't make a model.
        """
        values = dict(data)
        version = values.pop("version", _VERSION)
        if version != _VERSION:
            raise UnsupportedError(f"dimensions of version {version!r}; this perfmodel reads version {_VERSION}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise UnknownNameError("dimension", str(key), fields)
        for name, make in (
            ("rope_scaling", rope_scaling_from_dict),
            ("moe", MoeDims.from_dict),
            ("mla", MlaDims.from_dict),
        ):
            if isinstance(values.get(name), Mapping):
                values[name] = make(values[name])
        heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
        if values.get("num_key_value_heads") is None and heads is not None:
            values["num_key_value_heads"] = heads
        if values.get("head_dim") is None and isinstance(values.get("mla"), MlaDims):
            values["head_dim"] = values["mla"].qk_head_dim
        if values.get("head_dim") is None and heads is not None and hidden is not None:
            check_size("num_attention_heads", heads)
            check_size("hidden_size", hidden)
            if hidden % heads:
                raise UnsupportedError(
                    f"num_attention_heads={heads} doesn't divide hidden_size={hidden}; "
                    "give head_dim, or heads that divide it"
                )
            values["head_dim"] = hidden // heads
        missing = [
            name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values
        ]
        if missing:
            raise UnsupportedError(
                f"the dimensions lack {', '.join(missing)}; give {'it' if len(missing) == 1 else 'them'}"
            )
        return cls(**values)
