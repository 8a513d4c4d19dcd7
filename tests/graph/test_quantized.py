"""Weights of four bits: the numbers, and one op in a capture that keeps no weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import perfmodel as pm
from perfmodel.errors import CaptureError
from perfmodel.graph.capture.quantized import NF4, dequantize_4bit, linear_4bit
from tests.ops.calls import cost_of, tensor

OUT, IN, BLOCK = 16, 32, 64


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of the nearest values, two a byte, and the largest magnitude of each block."""
    blocks = weight.reshape(-1, BLOCK)
    scales = blocks.abs().amax(1)
    codes = (blocks[..., None] / scales[:, None, None] - torch.tensor(NF4)).abs().argmin(-1).flatten().to(torch.uint8)
    return codes[::2] << 4 | codes[1::2], scales


def nested(scales: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    code = torch.linspace(-1, 1, 256)
    offset = scales.mean()
    outer = (scales - offset).abs().amax().reshape(1)
    return ((scales - offset) / outer - code[:, None]).abs().argmin(0).to(torch.uint8), (code, outer, offset)


def test_values_of_the_format_come_back_exactly() -> None:
    torch.manual_seed(0)
    scales = torch.rand(OUT * IN // BLOCK) + 0.5
    # The first of each block is the largest value, so that the scale is known.
    codes = torch.randint(16, (len(scales), BLOCK))
    codes[:, 0] = 15
    weight = (torch.tensor(NF4)[codes] * scales[:, None]).view(OUT, IN)
    packed, found = quantized(weight)
    assert torch.equal(found, scales)
    torch.testing.assert_close(dequantize_4bit(packed, found, shape=(OUT, IN), dtype=torch.float32), weight)


def test_scales_of_eight_bits_are_close() -> None:
    torch.manual_seed(0)
    packed, scales = quantized(torch.randn(OUT, IN))
    small, parts = nested(scales)
    exact = dequantize_4bit(packed, scales, shape=(OUT, IN), dtype=torch.float32)
    close = dequantize_4bit(packed, small, shape=(OUT, IN), dtype=torch.float32, nested=parts)
    torch.testing.assert_close(close, exact, rtol=0.02, atol=0.02)
    assert not torch.equal(close, exact)


def test_a_linear_layer_of_four_bits_has_the_gradients_of_its_weight() -> None:
    torch.manual_seed(0)
    packed, scales = quantized(torch.randn(OUT, IN))
    weight = dequantize_4bit(packed, scales, shape=(OUT, IN), dtype=torch.float32)
    x, bias = torch.randn(2, 3, IN).requires_grad_(), torch.randn(OUT).requires_grad_()
    ours = linear_4bit(x, packed, scales, bias, shape=(OUT, IN))
    expected = nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), (x, bias)),
        torch.autograd.grad(expected.square().sum(), (x, bias)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_sizes_that_dont_fit_are_refused() -> None:
    packed, scales = quantized(torch.randn(OUT, IN))
    with pytest.raises(CaptureError, match=r"256 bytes and 8 scales don't make weights of shape \(16, 31\)"):
        dequantize_4bit(packed, scales, shape=(OUT, 31), dtype=torch.float32)


class Frozen(nn.Module):
    """A trained layer before a frozen one of four bits."""

    def __init__(self, double: bool) -> None:
        super().__init__()
        self.first = nn.Linear(IN, IN, bias=False, dtype=torch.bfloat16)
        packed, scales = quantized(torch.randn(OUT, IN))
        self.register_buffer("packed", packed)
        self.nested: Any = None
        if double:
            scales, (code, outer, offset) = nested(scales)
            for name, part in (("code", code), ("outer", outer), ("offset", offset)):
                self.register_buffer(name, part)
        self.register_buffer("scales", scales)
        self.double = double

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = (self.code, self.outer, self.offset) if self.double else None
        hidden = linear_4bit(self.first(x), self.packed, self.scales, shape=(OUT, IN), nested=parts)
        return hidden.float().square().mean()


@pytest.mark.parametrize("double", [False, True])
def test_the_weight_is_made_twice_and_not_kept(double: bool) -> None:
    graph = pm.capture(Frozen(double), (torch.zeros(4, IN, dtype=torch.bfloat16),), optimizer="adamw")
    phases = [op.phase for op, _ in graph.ops() if op.name == "perfmodel.dequantize_4bit"]
    assert phases == ["forward", "backward"]
    assert not graph.coverage.missing
    made = [s for s in graph.storages if "dequantize_4bit" in s.name]
    assert {(s.role, s.nbytes) for s in made} == {("temporary", OUT * IN * 2)}
    # The frozen product has no gradient of its weight: of 4 rows, forward and the gradient of its input.
    assert graph.flops() == 2 * 4 * (2 * IN * OUT + 2 * IN * IN)


def test_half_a_byte_and_the_scales_are_read() -> None:
    weights = 64 * 256 * 4
    packed, out = tensor(weights // 2, dtype="uint8"), tensor(64, 1024, dtype="bfloat16")
    plain = cost_of("perfmodel.dequantize_4bit", {"packed": packed, "absmax": tensor(weights // 64)}, [out])
    assert (plain.read, plain.written) == (weights / 2 + 4 * weights / 64, 2 * weights)
    inputs = {"packed": packed, "absmax": tensor(weights // 64, dtype="uint8"), "code": tensor(256)}
    inputs |= {"outer_absmax": tensor(weights // 64 // 256), "offset": tensor()}
    double = cost_of("perfmodel.dequantize_4bit", inputs, [out])
    # Scales of one byte, their 256 values, their own scales and the offset; each of two kernels writes them as float.
    scales = weights // 64
    assert double.read == weights / 2 + scales + 4 * 256 + 4 * scales // 256 + 4 + 2 * 4 * scales
    assert double.written == 2 * weights + 2 * 4 * scales
