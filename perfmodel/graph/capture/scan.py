"""State-space scans: plain PyTorch for real numbers, one op in a capture.

The scans of Mamba (Gu and Dao, 2023) and Mamba-2 (Dao and Gu, Transformers are SSMs,
2024). On a GPU they are kernels of their own; written in plain PyTorch they are
thousands of ops. Arguments are those of the published kernels, so that a module can
call either.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as functional

from perfmodel.errors import CaptureError

__all__ = ["scan_as_one_op", "selective_scan", "ssd_scan"]

_one_op = ContextVar("scans are one op", default=False)

_SSD = "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias"
_SELECTIVE = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"


def ssd_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,  # noqa: N803  (the paper's names)
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    chunk_size: int,
    D: torch.Tensor | None = None,  # noqa: N803
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
) -> torch.Tensor:
    """Scan of Mamba-2, by chunks (Dao and Gu, 2024, section 6).

    With ``h_0 = 0``, for each head: ``h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T`` and
    ``y_t = h_t C_t + D x_t``, times ``silu(z_t)`` where there is a gate.

    Parameters
    ----------
    x, z : torch.Tensor, shape [batch, seq, heads, head_dim]
    dt : torch.Tensor, shape [batch, seq, heads]
        ``softplus(dt + dt_bias)`` is taken where asked for.
    A, D, dt_bias : torch.Tensor, shape [heads]
    B, C : torch.Tensor, shape [batch, seq, groups, state]
        The heads of a group share them.
    chunk_size : int

    Returns
    -------
    torch.Tensor
        Of the shape and type of ``x``. Gradients flow to every tensor.

    Raises
    ------
    CaptureError
        If the heads aren't a multiple of the groups, or the chunk size isn't positive.
    """
    heads, groups = x.shape[2], B.shape[2]
    if heads % groups or chunk_size < 1:
        raise CaptureError(
            f"ssd_scan gets {heads} heads in {groups} groups and chunks of {chunk_size}; "
            "heads must be a multiple of groups and chunk_size at least 1"
        )
    if _one_op.get():
        return _Scan.apply("ssd_scan", (dt_softplus, chunk_size), x, dt, A, B, C, D, z, dt_bias)  # type: ignore[no-any-return]
    return _ssd(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus)


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,  # noqa: N803
    B: torch.Tensor,  # noqa: N803
    C: torch.Tensor,  # noqa: N803
    D: torch.Tensor | None = None,  # noqa: N803
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
) -> torch.Tensor:
    """Scan of Mamba (Gu and Dao, 2023, algorithm 2).

    With ``h_0 = 0``, for each channel: ``h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t`` and
    ``y_t = C_t h_t + D u_t``, times ``silu(z_t)`` where there is a gate.

    Parameters
    ----------
    u, delta, z : torch.Tensor, shape [batch, channels, seq]
        ``softplus(delta + delta_bias)`` is taken where asked for.
    A : torch.Tensor, shape [channels, state]
    B, C : torch.Tensor, shape [batch, state, seq]
    D, delta_bias : torch.Tensor, shape [channels]

    Returns
    -------
    torch.Tensor
        Of the shape and type of ``u``. Gradients flow to every tensor.
    """
    if _one_op.get():
        return _Scan.apply("selective_scan", (delta_softplus,), u, delta, A, B, C, D, z, delta_bias)  # type: ignore[no-any-return]
    return _selective(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


@contextlib.contextmanager
def scan_as_one_op() -> Iterator[None]:
    """While active, :func:`ssd_scan` and :func:`selective_scan` are recorded as one op each, forward and backward."""
    token = _one_op.set(True)
    try:
        yield
    finally:
        _one_op.reset(token)


# -- one op --------------------------------------------------------------------------


#: Positions that a thread block of Mamba's kernel scans; the state behind each is kept for backward
#: (selective_scan_fwd_kernel.cuh).
_POSITIONS = 2048


@functools.cache
def _ops() -> Any:
    for name, tensors, settings, fake in (
        ("ssd_scan", _SSD, "bool dt_softplus, int chunk_size", _fake_ssd),
        ("selective_scan", _SELECTIVE, "bool delta_softplus", _fake_selective),
    ):
        torch.library.define(f"perfmodel::{name}", f"({tensors}, {settings}) -> Tensor[]")
        torch.library.define(
            f"perfmodel::{name}_backward", f"(Tensor grad_out, {tensors}, Tensor[] kept, {settings}) -> Tensor[]"
        )
        torch.library.register_fake(f"perfmodel::{name}", fake)
        torch.library.register_fake(
            f"perfmodel::{name}_backward",
            lambda _grad, *rest: [torch.empty_like(tensor) for tensor in rest[:8] if tensor is not None],
        )
    return torch.ops.perfmodel


def _fake_ssd(x: Any, *rest: Any) -> Any:
    z = rest[5]
    return [x.new_empty(x.shape) for _ in range(1 if z is None else 2)]


def _fake_selective(u: Any, _delta: Any, a: Any, _b: Any, _c: Any, _d: Any, z: Any, *_: Any) -> Any:
    batch, channels, seq = u.shape
    blocks = (seq + _POSITIONS - 1) // _POSITIONS
    states = u.new_empty(batch, channels, blocks, 2 * a.shape[1], dtype=torch.float32)
    return [*(torch.empty_like(u) for _ in range(1 if z is None else 2)), states]


class _Scan(torch.autograd.Function):
    """What the published kernels keep: the operands, the ungated output, and of Mamba some states."""

    @staticmethod
    def forward(ctx: Any, name: str, settings: tuple[Any, ...], *tensors: Any) -> Any:
        out, *kept = getattr(_ops(), name)(*tensors, *settings)
        if name == "ssd_scan" and not kept:
            kept = [out]
        ctx.save_for_backward(*tensors, *kept)
        ctx.name, ctx.settings = name, settings
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        tensors, kept = ctx.saved_tensors[:8], list(ctx.saved_tensors[8:])
        found = iter(getattr(_ops(), f"{ctx.name}_backward")(grads[0].contiguous(), *tensors, kept, *ctx.settings))
        return None, None, *(None if tensor is None else next(found) for tensor in tensors)


# -- plain PyTorch -------------------------------------------------------------------


def _step_size(dt: torch.Tensor, bias: torch.Tensor | None, softplus: bool) -> torch.Tensor:
    dt = dt.float() if bias is None else dt.float() + bias.float()
    return functional.softplus(dt) if softplus else dt


def _finished(y: torch.Tensor, skip: torch.Tensor | None, z: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    if skip is not None:
        y = y + skip
    if z is not None:
        y = y * functional.silu(z.float())
    return y.to(like.dtype)


def _ssd(
    x: Any, dt: Any, a: Any, b: Any, c: Any, chunk: int, d: Any, z: Any, dt_bias: Any, softplus: bool
) -> torch.Tensor:
    _, seq, heads, _ = x.shape
    dt = _step_size(dt, dt_bias, softplus)
    padding = -seq % chunk
    values = functional.pad(x.float() * dt[..., None], (0, 0, 0, 0, 0, padding))
    decay = functional.pad(dt * a.float(), (0, 0, 0, padding))

    def in_chunks(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(tensor.shape[0], -1, chunk, *tensor.shape[2:])

    values = in_chunks(values)  # b c l h p
    log = in_chunks(decay).cumsum(2)  # b c l h, decay from the chunk's beginning
    keys, queries = (in_chunks(functional.pad(t.float(), (0, 0, 0, 0, 0, padding))) for t in (b, c))  # b c l g n
    of_group = heads // b.shape[2]
    # Within a chunk: attention whose weights decay.
    distance = log[:, :, :, None] - log[:, :, None]
    seen = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).tril()
    weights = distance.masked_fill(~seen[:, :, None], -torch.inf).exp()
    scores = torch.einsum("bclgn,bcmgn->bclmg", queries, keys).repeat_interleave(of_group, 4)
    within = torch.einsum("bclmh,bcmhp->bclhp", scores * weights, values)
    # Between chunks: each leaves a state, which the next ones read.
    keys, queries = keys.repeat_interleave(of_group, 3), queries.repeat_interleave(of_group, 3)
    to_end = (log[:, :, -1:] - log).exp()
    left = torch.einsum("bclhn,bclhp->bchpn", keys * to_end[..., None], values)
    state = left.new_zeros(left[:, 0].shape)
    states = []
    for number in range(left.shape[1]):
        states.append(state)
        state = log[:, number, -1].exp()[..., None, None] * state + left[:, number]
    between = torch.einsum("bclhn,bchpn->bclhp", queries, torch.stack(states, 1)) * log.exp()[..., None]
    y = (within + between).flatten(1, 2)[:, :seq]
    return _finished(y, None if d is None else d.float()[:, None] * x.float(), z, x)


def _selective(u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any, z: Any, bias: Any, softplus: bool) -> torch.Tensor:
    delta = _step_size(delta, None if bias is None else bias[:, None], softplus)
    decay = (delta[..., None] * a.float()[:, None]).exp()  # batch channels seq state
    added = (delta * u.float())[..., None] * b.float().transpose(1, 2)[:, None]
    state = torch.zeros_like(added[:, :, 0])
    outputs = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + added[:, :, t]
        outputs.append((state * c.float()[:, None, :, t]).sum(-1))
    y = torch.stack(outputs, -1)
    return _finished(y, None if d is None else d.float()[:, None] * u.float(), z, u)
