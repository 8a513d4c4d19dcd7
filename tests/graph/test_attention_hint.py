"""What a module says about its attention reaches the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import perfmodel as pm
from perfmodel.errors import CaptureError
from perfmodel.graph.capture.attention import attention_hint
from perfmodel.runtimes.attention import unfuse_attention


class Attention(nn.Module):
    def __init__(self, causal: bool = True, **hints: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.causal, self.hints = causal, hints

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x * self.scale
        with attention_hint(**self.hints):
            return F.scaled_dot_product_attention(q, q, q, is_causal=self.causal).mean()


def forward_attrs(module: nn.Module) -> dict[str, Any]:
    graph = pm.capture(module, (torch.zeros(2, 3, 16, 4),), optimizer=None)
    [attrs] = [dict(op.attrs) for op, _ in graph.ops() if op.name == "perfmodel.attention"]
    return attrs


def test_hints_are_attributes_of_the_op() -> None:
    attrs = forward_attrs(Attention(window=5, visible=0.25))
    assert (attrs["window"], attrs["visible"]) == (5, 0.25)
    assert {"window", "visible"}.isdisjoint(forward_attrs(Attention()))


def test_an_inner_hint_adds_to_the_outer_one() -> None:
    with attention_hint(visible=0.5, window=9):
        attrs = forward_attrs(Attention(window=5))
    assert (attrs["window"], attrs["visible"]) == (5, 0.5)
    assert "window" not in forward_attrs(Attention())


@pytest.mark.parametrize("hints", [{"window": 0}, {"visible": 0.0}, {"visible": 1.5}])
def test_values_out_of_range_are_refused(hints: dict[str, Any]) -> None:
    with pytest.raises(CaptureError, match="give"), attention_hint(**hints):
        pass


def test_a_hint_changes_nothing_that_is_computed() -> None:
    x = torch.randn(2, 3, 16, 4)
    assert torch.equal(Attention(window=2)(x), Attention()(x))


@pytest.mark.parametrize("hints", [{"window": 5}, {"visible": 0.25}])
def test_unfused_attention_adds_the_mask(hints: dict[str, Any]) -> None:
    plain, masked = (
        unfuse_attention(pm.capture(Attention(causal=False, **h), (torch.zeros(2, 3, 16, 4),), optimizer=None))
        for h in ({}, hints)
    )
    of_plain, of_masked = ([op.name for op, _ in graph.ops()].count("aten.add_") for graph in (plain, masked))
    assert of_masked - of_plain == 1
    assert masked.flops() == plain.flops()
