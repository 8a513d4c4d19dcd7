"""Scans against the recurrences that define them, and as one op in a capture."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import perfmodel as pm
from perfmodel.errors import CaptureError
from perfmodel.graph.capture.scan import selective_scan, ssd_scan
from perfmodel.graph.store import from_dict, to_dict


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float32).requires_grad_()


def ssd_operands(seq: int) -> dict[str, Any]:
    batch, heads, width, groups, state = 2, 4, 3, 2, 5
    return {
        "x": leaf(batch, seq, heads, width),
        "dt": leaf(batch, seq, heads),
        "A": (-torch.rand(heads)).requires_grad_(),
        "B": leaf(batch, seq, groups, state),
        "C": leaf(batch, seq, groups, state),
        "D": leaf(heads),
        "z": leaf(batch, seq, heads, width),
        "dt_bias": leaf(heads),
    }


def selective_operands(seq: int) -> dict[str, Any]:
    batch, channels, state = 2, 3, 4
    return {
        "u": leaf(batch, channels, seq),
        "delta": leaf(batch, channels, seq),
        "A": (-torch.rand(channels, state)).requires_grad_(),
        "B": leaf(batch, state, seq),
        "C": leaf(batch, state, seq),
        "D": leaf(channels),
        "z": leaf(batch, channels, seq),
        "delta_bias": leaf(channels),
    }


def naive_ssd(x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any) -> torch.Tensor:
    dt = F.softplus(dt + dt_bias)
    shared = x.shape[2] // B.shape[2]
    state = torch.zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[3])
    results = []
    for t in range(x.shape[1]):
        b, c = (m[:, t].repeat_interleave(shared, 1) for m in (B, C))
        state = (dt[:, t] * A).exp()[..., None, None] * state
        state = state + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, :, None]
        results.append((state * c[:, :, None]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(results, 1) * F.silu(z)


def naive_selective(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, delta_bias: Any) -> torch.Tensor:
    delta = F.softplus(delta + delta_bias[:, None])
    batch, channels, seq = u.shape
    result = torch.zeros(batch, channels, seq)
    for b in range(batch):
        for d in range(channels):
            state = torch.zeros(A.shape[1])
            for t in range(seq):
                state = (delta[b, d, t] * A[d]).exp() * state + delta[b, d, t] * u[b, d, t] * B[b, :, t]
                result[b, d, t] = C[b, :, t] @ state + D[d] * u[b, d, t]
    return result * F.silu(z)


def assert_same(ours: torch.Tensor, naive: torch.Tensor, operands: dict[str, Any]) -> None:
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(naive)
    found = torch.autograd.grad((ours * weights).sum(), tuple(operands.values()))
    expected = torch.autograd.grad((naive * weights).sum(), tuple(operands.values()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("seq", "chunk"), [(12, 4), (11, 4), (3, 8), (5, 1)])
def test_ssd_scan_is_the_recurrence(seq: int, chunk: int) -> None:
    torch.manual_seed(0)
    operands = ssd_operands(seq)
    assert_same(ssd_scan(**operands, chunk_size=chunk, dt_softplus=True), naive_ssd(**operands), operands)


def test_selective_scan_is_the_recurrence() -> None:
    torch.manual_seed(0)
    operands = selective_operands(7)
    assert_same(selective_scan(**operands, delta_softplus=True), naive_selective(**operands), operands)


def test_the_result_has_the_type_of_the_operand() -> None:
    half = {name: t.detach().bfloat16() for name, t in ssd_operands(6).items()}
    assert ssd_scan(**half, chunk_size=4).dtype == torch.bfloat16


def test_heads_that_dont_divide_are_refused() -> None:
    operands = ssd_operands(4)
    with pytest.raises(CaptureError, match="4 heads in 3 groups"):
        ssd_scan(**{**operands, "B": leaf(2, 4, 3, 5), "C": leaf(2, 4, 3, 5)}, chunk_size=2)


class Scans(nn.Module):
    """Its operands are parameters but for the input, so that every gradient is asked for."""

    def __init__(self, scan: Callable[..., torch.Tensor], operands: dict[str, Any], **settings: Any) -> None:
        super().__init__()
        self.scan, self.settings = scan, settings
        self.small = nn.ParameterDict({k: nn.Parameter(v.detach()) for k, v in operands.items() if v.dim() < 3})

    def forward(self, **sequences: torch.Tensor) -> torch.Tensor:
        return self.scan(**sequences, **self.small, **self.settings).square().mean()


@pytest.mark.parametrize("name", ["ssd_scan", "selective_scan"])
def test_a_scan_is_one_op_of_any_length(name: str) -> None:
    ssd = name == "ssd_scan"
    operands = ssd_operands(12) if ssd else selective_operands(12)
    settings = {"chunk_size": 4, "dt_softplus": True} if ssd else {"delta_softplus": True}
    module = Scans(ssd_scan if ssd else selective_scan, operands, **settings)
    sequences = {k: v.detach().requires_grad_() for k, v in operands.items() if v.dim() >= 3}
    shapes = {k: {0: "batch", (1 if ssd else 2): "seq"} for k in sequences}
    graph = pm.capture(module, kwargs=sequences, optimizer=None, dynamic_shapes=shapes)
    names = [op.name for op, _ in graph.ops() if op.name.startswith("perfmodel.") and "release" not in op.name]
    assert names == [f"perfmodel.{name}", f"perfmodel.{name}_backward"]
    assert not graph.coverage.missing
    longer = pm.capture(
        module,
        kwargs={k: torch.cat([v] * 3, 1 if ssd else 2).detach().requires_grad_() for k, v in sequences.items()},
        optimizer=None,
    )
    for unit in ("matrix", "vector"):
        assert graph.at(seq=36).flops(unit) == longer.flops(unit) > (0 if ssd or unit == "vector" else -1)
    assert graph.at(seq=36).bytes() == longer.bytes()


def test_on_a_cpu_the_scan_is_spelled_out() -> None:
    module = Scans(ssd_scan, ssd_operands(12), chunk_size=4, dt_softplus=True)
    sequences = {k: v.detach() for k, v in ssd_operands(12).items() if v.dim() >= 3}
    graph = pm.capture(module, kwargs=sequences, optimizer=None, dispatch="cpu")
    names = {op.name for op, _ in graph.ops()}
    assert "aten.bmm" in names
    assert not any(name.startswith("perfmodel.ssd") for name in names)


def test_a_scan_survives_a_file() -> None:
    module = Scans(ssd_scan, ssd_operands(12), chunk_size=4, dt_softplus=True)
    sequences = {k: v.detach() for k, v in ssd_operands(12).items() if v.dim() >= 3}
    graph = pm.capture(module, kwargs=sequences, optimizer="adamw", dynamic_shapes={k: {1: "seq"} for k in sequences})
    assert from_dict(json.loads(json.dumps(to_dict(graph)))) == graph
