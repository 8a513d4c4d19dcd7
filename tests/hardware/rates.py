"""What one unit of a device does in a clock, and how wide its memory is: the other half of every derivable figure.

The catalogue states peaks, numbers of units and clocks; the vendor's description of
an architecture states the operations of a unit in a clock. The product of three must
be the fourth. Units whose stated clock was itself computed from the peak are left
out: they would agree whatever was written.

A multiply-add counts as two operations. Rates are dense. ``source`` names the document
that introduced an architecture; the rates themselves are common knowledge of it, and
each is held by several devices and types of arithmetic here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.hardware import rates_others


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Operations a clock of one matrix and of one vector unit, by type of arithmetic, and where that stands."""

    source: str
    matrix: Mapping[str, float] = field(default_factory=dict)
    vector: Mapping[str, float] = field(default_factory=dict)


_GP100 = Rates(
    source="NVIDIA Pascal GP100 whitepaper: 64 FP32 and 32 FP64 units in a multiprocessor, FP16 in pairs",
    matrix={"fp64": 64, "fp32": 128, "fp16": 256},
    vector={"fp64": 64, "fp32": 128},
)
_GP104 = Rates(
    source="NVIDIA GP104: 128 FP32 units in a multiprocessor, each with a four-way dot product of bytes",
    matrix={"fp64": 8, "fp32": 256, "int8": 1024},
    vector={"fp64": 8, "fp32": 256},
)
_VOLTA = Rates(
    source="NVIDIA Volta whitepaper: 64 FP16 multiply-adds in a tensor core; 64 FP32, FP64 half of it",
    matrix={"fp16": 2 * 64},
    vector={"fp64": 64, "fp32": 128, "int32": 128},
)
_TURING = Rates(
    source="NVIDIA Turing whitepaper: 64 FP16 multiply-adds in a tensor core, 128 INT8, 256 INT4; 64 FP32 units",
    matrix={"fp16": 2 * 64, "int8": 2 * 128, "int4": 2 * 256},
    vector={"fp64": 4, "fp32": 128, "int32": 128},
)
_GA100 = Rates(
    source="NVIDIA A100 whitepaper: 256 FP16 multiply-adds in a tensor core; 64 FP32 units",
    matrix={"fp64": 2 * 16, "tf32": 2 * 128, "bf16": 2 * 256, "fp16": 2 * 256, "int8": 2 * 512},
    vector={"fp64": 64, "fp32": 128, "int32": 128},
)
_GA102 = Rates(
    source="NVIDIA GA102 whitepaper: 128 FP16 multiply-adds in a tensor core; 128 FP32 units, half for INT32 too",
    matrix={"tf32": 2 * 64, "bf16": 2 * 128, "fp16": 2 * 128, "int8": 2 * 256},
    vector={"fp32": 256, "int32": 128},
)
_GA102_HALF = Rates(
    source="NVIDIA GA102 whitepaper: GeForce cards, and A10G, halve products with float32 accumulation",
    matrix={"tf32": 2 * 32, "bf16": 2 * 64, "fp16": 2 * 64},
    vector={"fp32": 256, "int32": 128},
)
_ADA = Rates(
    source="NVIDIA Ada whitepaper: a tensor core as in GA102, and 256 FP8 multiply-adds",
    matrix={"tf32": 2 * 64, "bf16": 2 * 128, "fp16": 2 * 128, "fp8": 2 * 256, "int8": 2 * 256},
    vector={"fp32": 256, "int32": 128},
)
_ADA_HALF = Rates(
    source="NVIDIA Ada whitepaper: GeForce cards halve products with float32 accumulation",
    matrix={"tf32": 2 * 32, "bf16": 2 * 64, "fp16": 2 * 64, "fp8": 2 * 128, "int8": 2 * 256, "int4": 2 * 512},
    vector={"fp32": 256, "int32": 128},
)
_HOPPER = Rates(
    source="NVIDIA H100 whitepaper: 512 FP16 multiply-adds in a tensor core; 128 FP32, 64 FP64 and 64 INT32 units",
    matrix={"tf32": 2 * 256, "bf16": 2 * 512, "fp16": 2 * 512, "fp8": 2 * 1024, "int8": 2 * 1024},
    vector={"fp64": 128, "fp32": 256, "int32": 128},
)
_H800 = Rates(source=_HOPPER.source, matrix=_HOPPER.matrix, vector={"fp32": 256, "int32": 128})
_H100_PCIE = Rates(source=_HOPPER.source, vector=_HOPPER.vector)
_GB100 = Rates(
    source="hmc-tech, B200: 2048 FP16 operations a clock in a tensor core; 128 FP32 and 64 FP64 units",
    matrix={"tf32": 1024, "bf16": 2048, "fp16": 2048, "fp8": 4096, "fp4": 8192, "int8": 4096},
    vector={"fp64": 128, "fp32": 256, "int32": 256},
)
_GB202 = Rates(
    source="NVIDIA RTX Blackwell whitepaper: a tensor core as in Ada, and 1024 FP4 operations",
    matrix={"bf16": 256, "fp16": 256, "tf32": 128, "fp8": 512, "fp4": 1024, "int8": 512},
    vector={"fp32": 256, "int32": 128},
)
_GB202_HALF = Rates(
    source="NVIDIA RTX Blackwell whitepaper: GeForce cards halve products with float32 accumulation",
    matrix={"bf16": 128, "fp16": 128, "tf32": 64, "fp8": 256, "fp4": 1024, "int8": 512},
    vector={"fp32": 256, "int32": 128},
)

NVIDIA: dict[str, Rates] = {
    "nvidia-p4": _GP104,
    "nvidia-p100-pcie-16gb": _GP100,
    "nvidia-p100-sxm-16gb": _GP100,
    "nvidia-v100-pcie-16gb": _VOLTA,
    "nvidia-v100-pcie-32gb": _VOLTA,
    "nvidia-v100-sxm-16gb": _VOLTA,
    "nvidia-v100-sxm-32gb": _VOLTA,
    "nvidia-t4": _TURING,
    "nvidia-a100-pcie-40gb": _GA100,
    "nvidia-a100-pcie-80gb": _GA100,
    "nvidia-a100-sxm-40gb": _GA100,
    "nvidia-a100-sxm-80gb": _GA100,
    "nvidia-a10g": _GA102_HALF,
    "nvidia-a40": _GA102,
    "nvidia-rtx-a6000": _GA102,
    "nvidia-rtx-3090": _GA102_HALF,
    "nvidia-l4": _ADA,
    "nvidia-l40s": _ADA,
    "nvidia-rtx-4090": _ADA_HALF,
    "nvidia-h100-pcie-80gb": _H100_PCIE,
    "nvidia-h100-sxm-80gb": _HOPPER,
    "nvidia-h100-sxm-96gb-hbm2e-500w": _HOPPER,
    "nvidia-h200": _HOPPER,
    "nvidia-h800-sxm-80gb": _H800,
    "nvidia-gh200-96gb": _HOPPER,
    "nvidia-gh200-144gb": _HOPPER,
    "nvidia-b200": _GB100,
    "nvidia-gb200": _GB100,
    "nvidia-rtx-5090": _GB202_HALF,
    "nvidia-rtx-pro-6000-workstation": _GB202,
}

#: Operations a clock by device, unit and type of arithmetic, of the whole catalogue.
RATES: dict[str, Mapping[str, Mapping[str, float]]] = {
    **{name: {"matrix": rates.matrix, "vector": rates.vector} for name, rates in NVIDIA.items()},
    **rates_others.RATES,
}

#: Width of a device's main memory bus in bits, and Gbit/s of one of its pins.
BUSES: dict[str, tuple[int, float]] = {
    "nvidia-p4": (256, 6),
    "nvidia-p100-pcie-16gb": (4096, 1.43),
    "nvidia-p100-sxm-16gb": (4096, 1.43),
    "nvidia-v100-pcie-16gb": (4096, 2 * 876e-3),
    "nvidia-v100-pcie-32gb": (4096, 2 * 876e-3),
    "nvidia-v100-sxm-16gb": (4096, 2 * 876e-3),
    "nvidia-v100-sxm-32gb": (4096, 2 * 876e-3),
    "nvidia-t4": (256, 10),
    "nvidia-a100-pcie-40gb": (5120, 2 * 1215e-3),
    "nvidia-a100-pcie-80gb": (5120, 2 * 1512e-3),
    "nvidia-a100-sxm-40gb": (5120, 2 * 1215e-3),
    "nvidia-a100-sxm-80gb": (5120, 2 * 1593e-3),
    "nvidia-a10g": (384, 12.5),
    "nvidia-a40": (384, 14.5),
    "nvidia-rtx-a6000": (384, 16),
    "nvidia-rtx-3090": (384, 19.5),
    "nvidia-l4": (192, 12.5),
    "nvidia-l40s": (384, 18),
    "nvidia-rtx-4090": (384, 21),
    "nvidia-h100-pcie-80gb": (5120, 2 * 1593e-3),
    "nvidia-h100-sxm-80gb": (5120, 5.24),
    "nvidia-h800-sxm-80gb": (5120, 5.24),
    "nvidia-h200": (6144, 6.2),
    "nvidia-b200": (7680, 2 * 3996e-3),
    "nvidia-rtx-5090": (512, 28),
    "nvidia-rtx-pro-6000-workstation": (512, 28),
    **rates_others.BUSES,
}
