"""The dimensions that say what a transformer is, without PyTorch.

Names are those of Hugging Face's configs where a config has one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfmodel.errors import UnknownNameError, UnsupportedError
from perfmodel.models.stacks import LayerStack

__all__ = ["HIDDEN_ACTS", "RopeScaling", "TransformerDims"]

#: Activations that the reference modules know, by their Hugging Face names.
HIDDEN_ACTS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")

_CHOICES = {
    "family": ("decoder", "encoder"),
    "hidden_act": HIDDEN_ACTS,
    "norm": ("layernorm", "rmsnorm"),
    "position_embedding": ("learned", "rope"),
    "projection": ("linear", "conv1d"),
}
_POSITIVE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings",
)  # fmt: skip
_FLAGS = ("gated_mlp", "attention_bias", "mlp_bias", "tie_word_embeddings")
_PROBABILITIES = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How Llama 3.1 stretches rotary frequencies to long sequences (Hugging Face: ``rope_type="llama3"``).

    Attributes
    ----------
    factor : float
        By which low frequencies are divided.
    low_freq_factor, high_freq_factor : float
        Wavelengths above ``original_max_position_embeddings / low_freq_factor`` are
        stretched, those below ``… / high_freq_factor`` are kept, and those
        between are blended.
    original_max_position_embeddings : int
        Sequence length of the first training.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_number(f"rope_scaling.{field.name}", getattr(self, field.name))
        _check_size("rope_scaling.original_max_position_embeddings", self.original_max_position_embeddings)
        if self.high_freq_factor <= self.low_freq_factor:
            raise UnsupportedError(
                f"rope_scaling.high_freq_factor={self.high_freq_factor} must be above "
                f"low_freq_factor={self.low_freq_factor}; swap them"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerDims:
    """A transformer with a language-modelling head and its loss.

    Attributes
    ----------
    family : {"decoder", "encoder"}
        ``decoder``: pre-norm layers, causal attention, next-token loss (GPT-2, Llama).
        ``encoder``: post-norm layers, attention in both directions, masked-token loss (BERT).
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads : int
    num_key_value_heads : int
        Fewer than ``num_attention_heads`` is grouped-query attention.
    head_dim : int
        Width of one head; ``num_attention_heads * head_dim`` need not be ``hidden_size``.
    intermediate_size : int
        Inner width of the feed-forward block.
    max_position_embeddings : int
        Longest sequence: a hard limit with learned positions, the trained length with rotary ones.
    hidden_act : str
        One of :data:`HIDDEN_ACTS`.
    gated_mlp : bool
        ``down(act(gate(x)) * up(x))`` instead of ``down(act(up(x)))``.
    norm : {"layernorm", "rmsnorm"}
    norm_eps : float
    attention_bias, mlp_bias : bool
        Whether the projections of the block have a bias.
    tie_word_embeddings : bool
        Whether the head uses the weight of the token embedding.
    position_embedding : {"learned", "rope"}
    projection : {"linear", "conv1d"}
        ``conv1d`` is GPT-2's way: weights stored ``[in, out]``, and query, key
        and value in one product.
    rope_theta : float
        Base of the rotary wavelengths.
    rope_scaling : RopeScaling, optional
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
    rope_scaling: RopeScaling | None = None
    type_vocab_size: int = 0
    pad_token_id: int | None = None
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    resid_pdrop: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UnknownNameError(name, str(getattr(self, name)), choices, f"choose from {', '.join(choices)}")
        for name in _POSITIVE:
            _check_size(name, getattr(self, name))
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise UnsupportedError(f"{name}={getattr(self, name)!r} is neither true nor false; write one of them")
        for name in ("norm_eps", "rope_theta"):
            _check_number(name, getattr(self, name))
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise UnsupportedError(f"{name}={value!r} is no dropout probability; give 0 or more and less than 1")
        if (
            isinstance(self.type_vocab_size, bool)
            or not isinstance(self.type_vocab_size, int)
            or self.type_vocab_size < 0
        ):
            raise UnsupportedError(
                f"type_vocab_size={self.type_vocab_size!r} must be an integer of 0 or more; 0 is none"
            )
        self._check_combination()

    def _check_combination(self) -> None:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            raise UnsupportedError(
                f"num_key_value_heads={groups} doesn't divide num_attention_heads={heads}; "
                f"give one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}"
            )
        pad = self.pad_token_id
        if pad is not None and (isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= pad < self.vocab_size):
            raise UnsupportedError(
                f"pad_token_id={pad!r} is no token; give one below vocab_size={self.vocab_size}, or none"
            )
        if self.position_embedding == "rope" and self.head_dim % 2:
            raise UnsupportedError(
                f"head_dim={self.head_dim} is odd, but rotary positions pair its halves; make it even"
            )
        if self.rope_scaling is not None and self.position_embedding != "rope":
            raise UnsupportedError("rope_scaling is given, but position_embedding isn't 'rope'; remove one of them")
        if self.family == "encoder" and self.position_embedding != "learned":
            raise UnsupportedError("an encoder with rotary positions isn't known; set position_embedding='learned'")
        if self.family == "encoder" and self.projection != "linear":
            raise UnsupportedError("an encoder with conv1d projections isn't known; set projection='linear'")
        if self.family == "decoder" and self.type_vocab_size:
            raise UnsupportedError("a decoder with token types isn't known; set type_vocab_size=0")
        if self.projection == "conv1d" and (
            self.gated_mlp or groups != heads or not (self.attention_bias and self.mlp_bias)
        ):
            raise UnsupportedError(
                "conv1d projections are GPT-2's: with biases, no gate and as many key-value heads as heads; "
                "set projection='linear'"
            )

    # -- counts -----------------------------------------------------------------

    def parameters(self) -> int:
        r"""Trainable numbers of the model with its language-modelling head.

        With V vocabulary, H hidden, L layers, A heads, K key-value heads, d
        head width, F intermediate, P positions and T token types, and with
        norm = 2H (layernorm) or H (rmsnorm)::

            attention  = H d (2A + 2K)        + d (A + 2K) + H   with bias
            mlp        = 2 H F, gated 3 H F   + F + H, gated 2F + H   with bias
            layer      = attention + mlp + 2 norm
            embeddings = V H + P H (learned) + T H
            decoder    = embeddings + L layer + norm + V H (0 if tied)
            encoder    = embeddings + norm + L layer + (H² + H + norm) + V H (0 if tied) + V

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("gpt2").dims.parameters()
        124439808
        """
        hidden, vocab = self.hidden_size, self.vocab_size
        norm = 2 * hidden if self.norm == "layernorm" else hidden
        attention, mlp = self._layer_weights()
        if self.attention_bias:
            attention += self.head_dim * (self.num_attention_heads + 2 * self.num_key_value_heads) + hidden
        if self.mlp_bias:
            mlp += self.intermediate_size * (2 if self.gated_mlp else 1) + hidden
        total = vocab * hidden + self.type_vocab_size * hidden
        if self.position_embedding == "learned":
            total += self.max_position_embeddings * hidden
        total += norm + self.num_hidden_layers * (attention + mlp + 2 * norm)
        if self.family == "encoder":
            total += hidden * hidden + hidden + norm + vocab
        return total if self.tie_word_embeddings else total + vocab * hidden

    def matmul_parameters(self) -> int:
        """Weights that take part in a matrix product with activations: the N of 6N.

        Those of every layer, the head once (tied or not), and an encoder's
        transform before its head; no embedding, bias or norm.

        Examples
        --------
        >>> from perfmodel.models import catalogue
        >>> catalogue.get("llama-2-7b").dims.matmul_parameters()
        6607077376
        """
        transform = self.hidden_size**2 if self.family == "encoder" else 0
        return self.num_hidden_layers * sum(self._layer_weights()) + self.vocab_size * self.hidden_size + transform

    def _layer_weights(self) -> tuple[int, int]:
        """Weights of one layer's attention and feed-forward products."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        products = 3 if self.gated_mlp else 2
        return self.hidden_size * self.head_dim * heads, products * self.hidden_size * self.intermediate_size

    def closed_form_flops(self, bindings: Mapping[str, int]) -> float:
        """Model flops of a training step, ``tokens * (6 N + 12 L H Q T)``.

        N: parameters in matrix products, the head once and embeddings not; L layers,
        H heads, Q head size, T sequence length (Chowdhery et al. 2022, PaLM, appendix
        B). Forward and backward; causal attention by its full square.
        """
        batch, seq = bindings["batch"], bindings["seq"]
        attention = 12 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * seq
        return float(batch * seq * (6 * self.matmul_parameters() + attention))

    # -- layers -------------------------------------------------------------------

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """The one stack of layers."""
        return (LayerStack(path="layers", depth=self.num_hidden_layers),)

    @property
    def max_length(self) -> int | None:
        """Number of learned positions; rotary ones have no hard limit."""
        return self.max_position_embeddings if self.position_embedding == "learned" else None

    def with_depths(self, depths: Mapping[str, int]) -> TransformerDims:
        """The same model with another number of layers."""
        return dataclasses.replace(self, num_hidden_layers=depths["layers"])

    # -- other forms --------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML; :meth:`from_dict` is the inverse."""
        return {"version": _VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TransformerDims:
        """Dimensions from plain values.

        ``num_key_value_heads`` may be left out (as many as heads), and so may
        ``head_dim`` (``hidden_size`` over heads), as in Hugging Face's configs.

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
        heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
        if values.get("num_key_value_heads") is None and heads is not None:
            values["num_key_value_heads"] = heads
        if values.get("head_dim") is None and heads is not None and hidden is not None:
            _check_size("num_attention_heads", heads)
            _check_size("hidden_size", hidden)
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
        if isinstance(values.get("rope_scaling"), Mapping):
            values["rope_scaling"] = _rope_scaling(values["rope_scaling"])
        return cls(**values)


def _rope_scaling(data: Mapping[str, Any]) -> RopeScaling:
    names = [field.name for field in dataclasses.fields(RopeScaling)]
    for key in data:
        if key not in names:
            raise UnknownNameError("field of rope_scaling", str(key), names)
    missing = [name for name in names if name not in data]
    if missing:
        raise UnsupportedError(f"rope_scaling lacks {', '.join(missing)}; give {'it' if len(missing) == 1 else 'them'}")
    return RopeScaling(**data)


def _check_size(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedError(f"{name}={value!r} must be a positive integer; correct it")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise UnsupportedError(f"{name}={value!r} must be a positive number; correct it")
