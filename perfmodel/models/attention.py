"""Self-attention of decoders and encoders."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.graph.capture.attention import attention_hint
from perfmodel.models.dims import TransformerDims
from perfmodel.models.norms import make_norm
from perfmodel.models.rotary import Rotary, rotate, rotate_part

__all__ = ["Attention", "Conv1D", "attend", "merge_heads", "projection"]

#: Widest head for which grouped key-value heads are left to the attention kernel.
_WIDEST_GROUPED_HEAD = 256


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is stored ``[in, out]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        flat = hidden.view(-1, hidden.size(-1))
        return torch.addmm(self.bias, flat, self.weight).view(*hidden.shape[:-1], self.bias.shape[0])


def projection(dims: TransformerDims, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    """A product with a weight, stored as the dimensions say."""
    return Conv1D(inputs, outputs) if dims.projection == "conv1d" else nn.Linear(inputs, outputs, bias=bias)


class Attention(nn.Module):
    """Self-attention with grouped key-value heads.

    Through ``scaled_dot_product_attention`` where that computes what is asked for,
    and with materialised scores where it doesn't: capped scores and attention sinks.

    Parameters
    ----------
    dims : TransformerDims
    window : int, optional
        Keys that a query of this layer sees.
    """

    def __init__(self, dims: TransformerDims, *, window: int | None = None) -> None:
        super().__init__()
        self.causal = dims.family == "decoder"
        self.window = window
        self.head_dim = dims.head_dim
        self.heads, self.key_value_heads = dims.num_attention_heads, dims.num_key_value_heads
        self.groups = self.heads // self.key_value_heads
        self.dropout = dims.attn_pdrop
        self.scale = (dims.query_pre_attn_scalar or dims.head_dim) ** -0.5
        self.softcap = dims.attn_logit_softcapping
        self.projection = dims.projection
        self.rotary_dim, self.rope_in_float32 = dims.rotary_dim, dims.rope_in_float32
        hidden, bias = dims.hidden_size, dims.attention_bias or dims.qkv_bias
        queries, keys = self.heads * dims.head_dim, self.key_value_heads * dims.head_dim
        if self.projection == "linear":
            self.q_proj = nn.Linear(hidden, queries, bias=bias)
            self.k_proj = nn.Linear(hidden, keys, bias=bias)
            self.v_proj = nn.Linear(hidden, keys, bias=bias)
        else:
            self.qkv_proj = projection(dims, hidden, queries + 2 * keys, bias=bias)
        self.o_proj = projection(dims, queries, hidden, bias=dims.attention_bias)
        self.qk_norm = dims.qk_norm
        if self.qk_norm is not None:
            whole = self.qk_norm == "projection"
            self.q_norm = make_norm(dims, queries if whole else dims.head_dim)
            self.k_norm = make_norm(dims, keys if whole else dims.head_dim)
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if dims.attention_sinks else None

    def forward(self, hidden: Tensor, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        """``[batch, seq, hidden]`` in and out.

        ``mask`` is ``[batch, 1, seq, seq]`` or None: boolean, or, where scores are
        materialised, what is added to them.
        """
        query, key, value = self._project(hidden)
        if rotary is not None:
            rotary = rotary[0].unsqueeze(1), rotary[1].unsqueeze(1)
            query, key = self._rotate(query, rotary), self._rotate(key, rotary)
            if self.rope_in_float32:
                query, key = query.to(value.dtype), key.to(value.dtype)
        if self.softcap is not None or self.sinks is not None:
            out = self._materialised(query, key, value, mask)
        else:
            out = attend(
                query,
                key,
                value,
                mask,
                causal=self.causal,
                window=self.window,
                scale=self.scale,
                dropout=self.dropout if self.training else 0.0,
            )
        return self.o_proj(merge_heads(out))  # type: ignore[no-any-return]

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as ``[batch, heads, seq, head_dim]``."""
        if self.projection == "fused_by_head":
            fused = self.qkv_proj(hidden)
            heads = fused.view(*fused.shape[:-1], -1, 3 * self.head_dim).transpose(1, 2)
            return heads.chunk(3, dim=-1)  # type: ignore[no-any-return]
        if self.projection == "linear":
            query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        elif self.projection == "conv1d":
            query, key, value = self.qkv_proj(hidden).chunk(3, dim=-1)
        else:
            # Sliced, not split: backward then makes one full gradient of each part and adds them.
            fused = self.qkv_proj(hidden)
            queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
            query, key, value = (
                fused[..., :queries],
                fused[..., queries : queries + keys],
                fused[..., queries + keys :],
            )
        if self.qk_norm == "projection":
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (self._split(part) for part in (query, key, value))
        if self.qk_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _split(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim)

    def _rotate(self, states: Tensor, rotary: Rotary) -> Tensor:
        # Fused projections come with code that treats a whole head as a part of one.
        if self.rotary_dim < self.head_dim or self.projection == "fused":
            return rotate_part(states, rotary, self.rotary_dim)
        return rotate(states, rotary)

    def _materialised(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Product by product; an expression for a kernel."""
        if self.groups > 1:
            key, value = _repeat(key, self.groups), _repeat(value, self.groups)
        scores = torch.matmul(query, key.transpose(2, 3)) * self.scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is not None:
            scores = scores + mask
        if self.sinks is None:
            weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        else:
            sinks = self.sinks.reshape(1, -1, 1, 1).expand(query.shape[0], -1, query.shape[-2], -1)
            scores = torch.cat([scores, sinks], dim=-1)
            scores = scores - scores.max(dim=-1, keepdim=True).values
            weights = functional.softmax(scores, dim=-1, dtype=scores.dtype)[..., :-1]
        if self.dropout:
            weights = functional.dropout(weights, self.dropout, self.training)
        return torch.matmul(weights, value)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """Attention of ``[batch, heads, seq, width]``, and keys and values of as many heads or fewer.

    A ``mask`` holds causality and the window; without it the kernel knows the former.
    """
    groups = query.shape[1] // key.shape[1]
    grouped = groups > 1
    if grouped and not (mask is None and key.shape[-1] == value.shape[-1] <= _WIDEST_GROUPED_HEAD):
        key, value, grouped = _repeat(key, groups), _repeat(value, groups), False
    with attention_hint(window=window):
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal and mask is None,
            scale=scale,
            enable_gqa=grouped,
        )


def merge_heads(out: Tensor) -> Tensor:
    """``[batch, heads, seq, width]`` to ``[batch, seq, heads * width]``."""
    out = out.transpose(1, 2).contiguous()
    return out.reshape(*out.shape[:-2], -1)


def _repeat(states: Tensor, groups: int) -> Tensor:
    """A copy of each key-value head for every query head that uses it."""
    batch, heads, length, width = states.shape
    return (
        states[:, :, None, :, :]
        .expand(batch, heads, groups, length, width)
        .reshape(batch, heads * groups, length, width)
    )
