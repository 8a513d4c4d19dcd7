"""Dimensions of routed experts and of latent attention, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from perfmodel.errors import UnsupportedError
from perfmodel.models.checks import check_choice, check_flags, check_number, check_size, keywords_of

__all__ = ["ROUTERS", "MlaDims", "MoeDims"]

#: How a token's experts are chosen and weighted.
ROUTERS = ("softmax", "sigmoid", "topk_softmax")


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeDims:
    """A mixture of experts: a router sends each token to a few feed-forward blocks.

    Attributes
    ----------
    num_experts : int
        Routed experts of a layer. Hugging Face: ``num_local_experts``, ``num_experts`` or ``n_routed_experts``.
    num_experts_per_tok : int
        Experts that each token goes to.
    moe_intermediate_size : int
        Inner width of one expert.
    shared_expert_intermediate_size : int
        Inner width of the block that every token goes through besides; 0 for
        none. DeepSeek: ``n_shared_experts * moe_intermediate_size``.
    first_k_dense_replace : int
        Layers at the start without experts.
    decoder_sparse_step : int
        Every how manieth layer has experts (counted from the first layer of the model).
    router : {"softmax", "sigmoid", "topk_softmax"}
        ``softmax`` over all experts, then the largest (Mixtral, Qwen3);
        ``sigmoid`` scores with a bias that balances the load, the best groups first
        (DeepSeek-V3, arXiv:2412.19437, section 2.1.2); ``topk_softmax``: the
        largest logits, then the softmax over these (gpt-oss).
    norm_topk_prob : bool
        Whether the weights of a token's experts are made to sum to one.
    float32_weights : bool
        Whether they stay in float32 (Mixtral, DeepSeek-V3) or get the type of the router's logits (Qwen3).
    n_group, topk_group : int
        Groups of experts, and of how many groups a token's experts come (``sigmoid`` only).
    routed_scaling_factor : float
        Factor of the weights.
    bias : bool
        Whether router and experts have biases, and weights are stored ``[in, out]`` (gpt-oss).
    swiglu_limit, swiglu_alpha : float, optional
        gpt-oss's activation ``(clamp(up) + 1) * clamp(gate) * sigmoid(alpha * clamp(gate))`` with
        gate and up in alternate columns; ``None``: the model's gated activation.

    Raises
    ------
    UnsupportedError
        If the values make no mixture; the message names the field.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int = 0
    first_k_dense_replace: int = 0
    decoder_sparse_step: int = 1
    router: str = "softmax"
    norm_topk_prob: bool = True
    float32_weights: bool = True
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    bias: bool = False
    swiglu_limit: float | None = None
    swiglu_alpha: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"):
            check_size(f"moe.{name}", getattr(self, name))
        for name in ("n_group", "topk_group"):
            check_size(f"moe.{name}", getattr(self, name))
        for name in ("shared_expert_intermediate_size", "first_k_dense_replace"):
            check_size(f"moe.{name}", getattr(self, name), least=0)
        check_flags(self, ("norm_topk_prob", "float32_weights", "bias"), "moe.")
        check_choice("moe.router", self.router, ROUTERS)
        check_number("moe.routed_scaling_factor", self.routed_scaling_factor)
        if self.num_experts_per_tok > self.num_experts:
            raise UnsupportedError(
                f"moe.num_experts_per_tok={self.num_experts_per_tok} is more than num_experts={self.num_experts}; "
                "give at most as many"
            )
        if self.num_experts % self.n_group or self.topk_group > self.n_group:
            raise UnsupportedError(
                f"moe.n_group={self.n_group} must divide num_experts={self.num_experts} and be at least "
                f"topk_group={self.topk_group}; correct them"
            )
        if (self.n_group > 1 or self.routed_scaling_factor != 1) and self.router != "sigmoid":
            raise UnsupportedError("groups and routed_scaling_factor are of moe.router='sigmoid'; leave them out")
        if self.router == "sigmoid" and self.num_experts // self.n_group < 2:
            raise UnsupportedError(
                f"moe.n_group={self.n_group} leaves a group of one expert, and groups are compared by their best two; "
                "give fewer groups"
            )
        if (self.swiglu_limit is None) != (self.swiglu_alpha is None):
            raise UnsupportedError("moe.swiglu_limit and moe.swiglu_alpha come together; give both or none")
        for name in ("swiglu_limit", "swiglu_alpha"):
            if getattr(self, name) is not None:
                check_number(f"moe.{name}", getattr(self, name))

    def routes(self, layer: int) -> bool:
        """Whether the layer of this number, from 0, has experts."""
        return layer >= self.first_k_dense_replace and (layer + 1) % self.decoder_sparse_step == 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The record of plain values.

        Raises
        ------
        UnknownNameError
            For a key that isn't a field.
        UnsupportedError
            For missing keys, or values that make no mixture.
        """
        return cls(**keywords_of(cls, "moe", data))


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaDims:
    """Multi-head latent attention: keys and values are made from one small vector a token.

    DeepSeek-AI 2024, DeepSeek-V2, arXiv:2405.04434, section 2.1. Names are Hugging Face's.

    Attributes
    ----------
    kv_lora_rank : int
        Width of the latent vector of keys and values.
    q_lora_rank : int, optional
        Width of that of queries; ``None``: queries are projected directly.
    qk_nope_head_dim, qk_rope_head_dim : int
        Parts of a query and key head without and with rotary positions; the
        rotary part of the key is one for all heads.
    v_head_dim : int
        Width of a value head.
    rope_interleave : bool
        Whether rotary pairs are neighbours (DeepSeek's weights) or halves apart.

    Raises
    ------
    UnsupportedError
        If a value is no width; the message names the field.
    """

    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rope_interleave: bool = True

    def __post_init__(self) -> None:
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            check_size(f"mla.{name}", getattr(self, name))
        if self.q_lora_rank is not None:
            check_size("mla.q_lora_rank", self.q_lora_rank)
        check_flags(self, ("rope_interleave",), "mla.")
        if self.qk_rope_head_dim % 2:
            raise UnsupportedError(
                f"mla.qk_rope_head_dim={self.qk_rope_head_dim} is odd, but rotary positions pair it; make it even"
            )

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The record of plain values.

        Raises
        ------
        UnknownNameError
            For a key that isn't a field.
        UnsupportedError
            For missing keys or values that are no widths.
        """
        return cls(**keywords_of(cls, "mla", data))
