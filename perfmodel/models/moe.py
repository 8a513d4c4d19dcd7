"""Feed-forward blocks that a router chooses for each token, as grouped products.

Tokens are sorted by expert, so that each weight is one product with the rows that
its expert got: what Hugging Face's transformers run with
``experts_implementation="grouped_mm"``. No loss for balancing the experts is
added, as their configs leave it out (``output_router_logits=False``).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.models.dims import TransformerDims
from perfmodel.models.dims_moe import MoeDims
from perfmodel.models.layers import FeedForward, activation

__all__ = ["MixtureOfExperts"]

#: Weights of a token's experts, and which they are; both ``[tokens, num_experts_per_tok]``.
Routing = tuple[Tensor, Tensor]


class MixtureOfExperts(nn.Module):
    """A router, the experts, and a block that every token goes through if there is one.

    Parameters
    ----------
    dims : TransformerDims
    moe : MoeDims
        ``dims.moe``.
    """

    def __init__(self, dims: TransformerDims, moe: MoeDims) -> None:
        super().__init__()
        make = {"softmax": SoftmaxRouter, "sigmoid": SigmoidRouter, "topk_softmax": TopKSoftmaxRouter}[moe.router]
        self.router = make(dims.hidden_size, moe)
        self.experts = Experts(dims, moe)
        shared = moe.shared_expert_intermediate_size
        self.shared = FeedForward(dims, intermediate_size=shared) if shared else None

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` in and out."""
        flat = hidden.view(-1, hidden.shape[-1])
        weights, chosen = self.router(flat)
        out: Tensor = self.experts(flat, weights, chosen).view(hidden.shape)
        return out if self.shared is None else out + self.shared(hidden)


class Router(nn.Module):
    """A logit for each expert, and a choice."""

    def __init__(self, hidden_size: int, moe: MoeDims) -> None:
        super().__init__()
        self.moe = moe
        self.weight = nn.Parameter(torch.empty(moe.num_experts, hidden_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.bias = nn.Parameter(torch.zeros(moe.num_experts)) if moe.bias else None

    def _weighted(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        if self.moe.norm_topk_prob:
            weights /= weights.sum(dim=-1, keepdim=True)
        return weights if self.moe.float32_weights else weights.to(dtype)


class SoftmaxRouter(Router):
    """The largest of a softmax over all experts."""

    def forward(self, flat: Tensor) -> Routing:
        """For ``[tokens, hidden]``."""
        logits = functional.linear(flat, self.weight, self.bias)
        weights, chosen = torch.topk(
            functional.softmax(logits, dim=-1, dtype=torch.float), self.moe.num_experts_per_tok
        )
        return self._weighted(weights, logits.dtype), chosen


class TopKSoftmaxRouter(Router):
    """A softmax over the largest logits."""

    def forward(self, flat: Tensor) -> Routing:
        """For ``[tokens, hidden]``."""
        largest, chosen = torch.topk(functional.linear(flat, self.weight, self.bias), self.moe.num_experts_per_tok)
        return functional.softmax(largest, dim=-1, dtype=largest.dtype), chosen


class SigmoidRouter(Router):
    """DeepSeek-V3's: experts of the best groups by score plus a bias that no gradient trains."""

    balance: Tensor

    def __init__(self, hidden_size: int, moe: MoeDims) -> None:
        super().__init__(hidden_size, moe)
        self.register_buffer("balance", torch.zeros(moe.num_experts))

    def forward(self, flat: Tensor) -> Routing:
        """For ``[tokens, hidden]``, in float32."""
        moe = self.moe
        size = moe.num_experts // moe.n_group
        scores = functional.linear(flat.to(torch.float32), self.weight.to(torch.float32)).sigmoid()
        balanced = scores + self.balance
        # A group is as good as its best two.
        groups = balanced.view(-1, moe.n_group, size).topk(2, dim=-1)[0].sum(dim=-1)
        best = torch.topk(groups, k=moe.topk_group, dim=-1, sorted=False)[1]
        mask = torch.zeros_like(groups).scatter_(1, best, 1)
        mask = mask.unsqueeze(-1).expand(-1, moe.n_group, size).reshape(-1, moe.num_experts)
        balanced = balanced.masked_fill(~mask.bool(), float("-inf"))
        chosen = torch.topk(balanced, k=moe.num_experts_per_tok, dim=-1, sorted=False)[1]
        weights = scores.gather(1, chosen)
        if moe.norm_topk_prob:
            # The published code's guard against a sum of zero.
            weights /= weights.sum(dim=-1, keepdim=True) + 1e-20
        return weights * moe.routed_scaling_factor, chosen


class Experts(nn.Module):
    """All experts' weights in three dimensions, the first being the expert."""

    def __init__(self, dims: TransformerDims, moe: MoeDims) -> None:
        super().__init__()
        self.moe = moe
        self.act = activation(dims.hidden_act)
        count, hidden, inner = moe.num_experts, dims.hidden_size, moe.moe_intermediate_size
        up, down = (count, 2 * inner, hidden), (count, hidden, inner)
        if moe.bias:
            up, down = (count, hidden, 2 * inner), (count, inner, hidden)
            self.gate_up_proj_bias = nn.Parameter(torch.zeros(count, 2 * inner))
            self.down_proj_bias = nn.Parameter(torch.zeros(count, hidden))
        self.gate_up_proj = nn.Parameter(torch.empty(up))
        self.down_proj = nn.Parameter(torch.empty(down))
        nn.init.normal_(self.gate_up_proj, std=hidden**-0.5)
        nn.init.normal_(self.down_proj, std=inner**-0.5)

    def forward(self, flat: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Weighted sum over the experts of each token: ``[tokens, hidden]`` in and out."""
        moe, (tokens, hidden), top = self.moe, flat.shape, chosen.shape[-1]
        row_weights = weights.reshape(-1)
        expert, order = torch.sort(chosen.reshape(-1))
        rows = flat[order // top]
        row_weights = row_weights[order]
        # histc takes floats on a CPU and integers on a GPU.
        keys = expert.float() if flat.device.type == "cpu" else expert.int()
        counts = torch.histc(keys, bins=moe.num_experts, min=0, max=moe.num_experts - 1)
        ends = torch.cumsum(counts, dim=0, dtype=torch.int32)
        inner = self._gate(self._product(rows, self.gate_up_proj, "gate_up_proj_bias", expert, ends))
        out = self._product(inner, self.down_proj, "down_proj_bias", expert, ends) * row_weights.unsqueeze(-1)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.shape[0], device=order.device)
        return out[place].view(tokens, top, hidden).sum(dim=1).to(flat.dtype)

    def _product(self, rows: Tensor, weight: Tensor, bias: str, expert: Tensor, ends: Tensor) -> Tensor:
        if not self.moe.bias:
            return torch._grouped_mm(rows, weight.transpose(-2, -1), offs=ends)
        out = torch._grouped_mm(rows, weight, offs=ends)
        return out.add_(getattr(self, bias)[expert])

    def _gate(self, both: Tensor) -> Tensor:
        limit, alpha = self.moe.swiglu_limit, self.moe.swiglu_alpha
        if limit is None or alpha is None:
            gate, up = both.chunk(2, dim=-1)
            return self.act(gate) * up
        gate, up = both[..., ::2].clamp(max=limit), both[..., 1::2].clamp(min=-limit, max=limit)
        return (up + 1) * (gate * torch.sigmoid(gate * alpha))
