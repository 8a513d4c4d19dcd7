"""Weights that are stored in fewer bits than arithmetic runs in."""

from __future__ import annotations

from perfmodel.ops.common import nbytes
from perfmodel.ops.cost import OpCost
from perfmodel.ops.registry import register
from perfmodel.ops.tensor import OpCall

__all__: list[str] = []

#: Look-up and product with the scale; of a quantised scale look-up, product and sum.
_STEPS, _SCALE_STEPS = 2, 3

#: Bytes of a scale that was quantised, once it's made.
_SCALE_SIZE = 4


@register("perfmodel.dequantize_4bit")
def _dequantize(call: OpCall) -> OpCost:
    """Reads codes and scales, writes weights.

    Scales that are quantised themselves are made first, by two kernels (look-up,
    sum), each of which writes them (bitsandbytes, ``dequantize_4bit``).
    """
    weight = call.outputs[0]
    nested = "code" in call.inputs
    scales = call.inputs["absmax"].numel if nested else 0
    return OpCost(
        family="elementwise",
        dtype=weight.dtype,
        vector_flops=_STEPS * weight.numel + _SCALE_STEPS * scales,
        read=nbytes(call.inputs.values()) + 2 * scales * _SCALE_SIZE,
        written=weight.nbytes + 2 * scales * _SCALE_SIZE,
        kernels=3 if nested else 1,
    )
