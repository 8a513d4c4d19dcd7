"""Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, arXiv:2405.04434, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perfmodel.models.attention import attend, merge_heads
from perfmodel.models.dims import TransformerDims
from perfmodel.models.dims_moe import MlaDims
from perfmodel.models.norms import RMSNorm
from perfmodel.models.rotary import Rotary, rotate, rotate_interleaved, yarn_temperature

__all__ = ["LatentAttention"]

#: Of the norms of latent vectors; not the model's.
_LATENT_EPS = 1e-6


class LatentAttention(nn.Module):
    """Attention whose keys and values are expanded from one latent vector a token, as in training.

    Parameters
    ----------
    dims : TransformerDims
    mla : MlaDims
        ``dims.mla``.
    """

    def __init__(self, dims: TransformerDims, mla: MlaDims) -> None:
        super().__init__()
        self.widths = mla
        self.dropout = dims.attn_pdrop
        self.scale = mla.qk_head_dim**-0.5 * yarn_temperature(dims)
        hidden, heads = dims.hidden_size, dims.num_attention_heads
        if mla.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * mla.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, mla.q_lora_rank, bias=False)
            self.q_a_norm = RMSNorm(mla.q_lora_rank, _LATENT_EPS)
            self.q_b_proj = nn.Linear(mla.q_lora_rank, heads * mla.qk_head_dim, bias=False)
        self.kv_a_proj = nn.Linear(hidden, mla.kv_lora_rank + mla.qk_rope_head_dim, bias=False)
        self.kv_a_norm = RMSNorm(mla.kv_lora_rank, _LATENT_EPS)
        self.kv_b_proj = nn.Linear(mla.kv_lora_rank, heads * (mla.qk_nope_head_dim + mla.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * mla.v_head_dim, hidden, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor | None, rotary: Rotary | None) -> Tensor:
        """``[batch, seq, hidden]`` in and out; ``mask`` is a boolean ``[batch, 1, seq, seq]`` or None."""
        assert rotary is not None  # latent attention has rotary positions
        mla, (batch, length) = self.widths, hidden.shape[:2]
        queries = self._queries(hidden).view(batch, length, -1, mla.qk_head_dim).transpose(1, 2)
        query_nope, query_rope = torch.split(queries, [mla.qk_nope_head_dim, mla.qk_rope_head_dim], dim=-1)
        latent, key_rope = torch.split(self.kv_a_proj(hidden), [mla.kv_lora_rank, mla.qk_rope_head_dim], dim=-1)
        latent = self.kv_a_norm(latent).view(batch, 1, length, mla.kv_lora_rank)
        key_rope = key_rope.view(batch, 1, length, mla.qk_rope_head_dim)
        turn = rotate_interleaved if mla.rope_interleave else rotate
        tables = rotary[0].unsqueeze(1), rotary[1].unsqueeze(1)
        query_rope, key_rope = turn(query_rope, tables), turn(key_rope, tables)
        query = torch.cat((query_nope, query_rope), dim=-1)
        key, value = self._expand(latent, key_rope)
        dropout = self.dropout if self.training else 0.0
        out = attend(query, key, value, mask, causal=True, scale=self.scale, dropout=dropout)
        return self.o_proj(merge_heads(out))  # type: ignore[no-any-return]

    def _queries(self, hidden: Tensor) -> Tensor:
        if self.widths.q_lora_rank is None:
            return self.q_proj(hidden)  # type: ignore[no-any-return]
        return self.q_b_proj(self.q_a_norm(self.q_a_proj(hidden)))  # type: ignore[no-any-return]

    def _expand(self, latent: Tensor, key_rope: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all heads; the rotary part of the key is one for all."""
        mla, (batch, _, length, _) = self.widths, latent.shape
        both = self.kv_b_proj(latent).view(batch, length, -1, mla.qk_nope_head_dim + mla.v_head_dim).transpose(1, 2)
        key_nope, value = torch.split(both, [mla.qk_nope_head_dim, mla.v_head_dim], dim=-1)
        key = both.new_empty(*both.shape[:-1], mla.qk_head_dim)
        key[..., : mla.qk_nope_head_dim].copy_(key_nope)
        key[..., mla.qk_nope_head_dim :].copy_(key_rope.expand(-1, key_nope.shape[1], -1, -1))
        return key, value
