"""A state-space language model: Mamba and Mamba-2, with their scans as one op.

Hugging Face's modules run the scan in plain PyTorch where Mamba's kernels aren't
installed: thousands of ops that nobody trains with. So these aren't op for op
theirs, though they give the same numbers. The convolution and its activation are
ops of their own here, where the kernels fuse them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from perfmodel.graph.capture.scan import selective_scan, ssd_scan
from perfmodel.models.dims_state_space import StateSpaceDims
from perfmodel.models.layers import IGNORED_LABEL, LossAndLogits, run_layer

__all__ = ["StateSpaceModel", "build"]


class Norm(nn.Module):
    """Root-mean-square norm in float32; with ``groups``, of each group of channels, after a gate."""

    def __init__(self, width: int, eps: float, *, groups: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.groups = eps, groups

    def forward(self, hidden: Tensor, gate: Tensor | None = None) -> Tensor:
        """``[..., width]`` in and out, in the type of ``hidden``."""
        dtype = hidden.dtype
        hidden = hidden.to(torch.float32)
        if gate is not None:
            hidden = hidden * functional.silu(gate.to(torch.float32))
        if self.groups is not None:
            hidden = hidden.view(*hidden.shape[:-1], self.groups, -1)
        hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.groups is not None:
            hidden = hidden.flatten(-2)
        return self.weight * hidden.to(dtype)


def _causal_convolution(dims: StateSpaceDims) -> nn.Conv1d:
    channels, kernel = dims.conv_channels, dims.conv_kernel
    return nn.Conv1d(channels, channels, kernel, groups=channels, padding=kernel - 1, bias=dims.use_conv_bias)


class SelectiveMixer(nn.Module):
    """Mamba's layer (Gu & Dao 2023, figure 3)."""

    def __init__(self, dims: StateSpaceDims) -> None:
        super().__init__()
        self.dims = dims
        channels, rank = dims.channels, dims.time_step_rank
        self.in_proj = nn.Linear(dims.hidden_size, 2 * channels, bias=dims.use_bias)
        self.conv1d = _causal_convolution(dims)
        self.x_proj = nn.Linear(channels, rank + 2 * dims.state_size, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, dims.state_size + 1).float()).repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, dims.hidden_size, bias=dims.use_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` in and out."""
        dims, length = self.dims, hidden.shape[1]
        states, gate = self.in_proj(hidden).transpose(1, 2).chunk(2, dim=1)
        states = functional.silu(self.conv1d(states)[:, :, :length])
        step, b, c = torch.split(
            self.x_proj(states.transpose(1, 2)), [dims.time_step_rank, dims.state_size, dims.state_size], dim=-1
        )
        out = selective_scan(
            states,
            self.dt_proj.weight @ step.transpose(1, 2),
            -torch.exp(self.A_log.float()),
            b.transpose(1, 2),
            c.transpose(1, 2),
            D=self.D.float(),
            z=gate,
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
        )
        return self.out_proj(out.transpose(1, 2))  # type: ignore[no-any-return]


class SsdMixer(nn.Module):
    """Mamba-2's layer (Dao & Gu 2024, figure 6, right)."""

    def __init__(self, dims: StateSpaceDims) -> None:
        super().__init__()
        self.dims = dims
        heads = dims.num_heads
        projected = dims.channels + dims.conv_channels + heads
        self.in_proj = nn.Linear(dims.hidden_size, projected, bias=dims.use_bias)
        self.conv1d = _causal_convolution(dims)
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.A_log = nn.Parameter(torch.log(torch.arange(1, heads + 1).float()).to(torch.get_default_dtype()))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = Norm(dims.channels, dims.layer_norm_epsilon, groups=dims.n_groups)
        self.out_proj = nn.Linear(dims.channels, dims.hidden_size, bias=dims.use_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` in and out."""
        dims, (batch, length, _) = self.dims, hidden.shape
        width = dims.n_groups * dims.state_size
        gate, states, step = torch.split(
            self.in_proj(hidden), [dims.channels, dims.conv_channels, dims.num_heads], dim=-1
        )
        states = functional.silu(self.conv1d(states.transpose(1, 2))[:, :, :length]).transpose(1, 2)
        x, b, c = torch.split(states, [dims.channels, width, width], dim=-1)
        out = ssd_scan(
            x.reshape(batch, length, dims.num_heads, dims.head_dim),
            step,
            -torch.exp(self.A_log.float()),
            b.reshape(batch, length, dims.n_groups, dims.state_size),
            c.reshape(batch, length, dims.n_groups, dims.state_size),
            dims.chunk_size,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_softplus=True,
        )
        return self.out_proj(self.norm(out.reshape(batch, length, -1), gate))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Pre-norm mixer, added to the residual."""

    def __init__(self, dims: StateSpaceDims, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.norm = Norm(dims.hidden_size, dims.layer_norm_epsilon)
        self.mixer: nn.Module = SsdMixer(dims) if dims.scan == "ssd" else SelectiveMixer(dims)
        self.residual_in_fp32 = dims.residual_in_fp32
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` in and out."""
        return run_layer(self._body, self.gradient_checkpointing and self.training, hidden)

    def _body(self, hidden: Tensor) -> Tensor:
        residual = hidden.to(torch.float32) if self.residual_in_fp32 else hidden
        return residual + self.mixer(self.norm(hidden.to(self.norm.weight.dtype)))  # type: ignore[no-any-return]


class StateSpaceModel(nn.Module):
    """Token ids in, mean next-token cross-entropy out.

    Parameters
    ----------
    dims : StateSpaceDims
    gradient_checkpointing : bool
        Recompute each layer in backward.
    return_logits : bool
        Return :class:`perfmodel.models.layers.LossAndLogits` instead of the loss alone.
    """

    def __init__(
        self, dims: StateSpaceDims, *, gradient_checkpointing: bool = False, return_logits: bool = False
    ) -> None:
        super().__init__()
        self.return_logits = return_logits
        self.embed_tokens = nn.Embedding(dims.vocab_size, dims.hidden_size)
        self.layers = nn.ModuleList(
            Layer(dims, gradient_checkpointing=gradient_checkpointing) for _ in range(dims.num_hidden_layers)
        )
        self.norm = Norm(dims.hidden_size, dims.layer_norm_epsilon)
        self.lm_head = nn.Linear(dims.hidden_size, dims.vocab_size, bias=False)
        if dims.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor | LossAndLogits:
        """The loss of one batch, both ``[batch, seq]`` of int64.

        Label ``t`` is predicted from the tokens before ``t``; -100 doesn't count.
        """
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.lm_head(self.norm(hidden).to(self.lm_head.weight.dtype)).float()
        shifted = functional.pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:].contiguous()
        loss = functional.cross_entropy(logits.view(-1, logits.shape[-1]), shifted.view(-1), ignore_index=IGNORED_LABEL)
        return LossAndLogits(loss, logits) if self.return_logits else loss


def build(
    dims: StateSpaceDims, *, gradient_checkpointing: bool = False, return_logits: bool = False
) -> StateSpaceModel:
    """A state-space model in training mode; see :class:`StateSpaceModel`."""
    return StateSpaceModel(dims, gradient_checkpointing=gradient_checkpointing, return_logits=return_logits)
