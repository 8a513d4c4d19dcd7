"""What one unit does a clock, and what memory buses carry, for devices that aren't NVIDIA's.

Each rate is of one of the units that the device file counts (``count``), in FLOP or OP
a clock, a multiply-add as two. Together with the file's count and clock it gives the
peak that the file states. Devices whose clock isn't published aren't here: there the
file has none (Gaudi 1, TPU v6e and v7x) or one that was computed from the peak (TPU v5p,
Trainium, Alveo). Where a file's peak is itself derived (CPUs, Apple, most FPGAs), this
checks the derivation.
"""

from __future__ import annotations

#: device -> unit -> type of arithmetic -> FLOP (or OP) a clock and unit.
RATES: dict[str, dict[str, dict[str, float]]] = {
    # AMD CDNA: per compute unit and clock in the ROCm documentation and white papers; 4 matrix cores in each.
    "amd-mi100": {
        "matrix": {"fp32": 256 / 4, "bf16": 512 / 4, "fp16": 1024 / 4, "int8": 1024 / 4},
        "vector": {"fp64": 64, "fp32": 128},
    },
    "amd-mi210": {
        "matrix": {"fp64": 256 / 4, "fp32": 256 / 4, "bf16": 1024 / 4, "fp16": 1024 / 4, "int8": 1024 / 4},
        "vector": {"fp64": 128, "fp32": 128},
    },
    "amd-mi250x": {
        "matrix": {"fp64": 256 / 4, "fp32": 256 / 4, "bf16": 1024 / 4, "fp16": 1024 / 4, "int8": 1024 / 4},
        "vector": {"fp64": 128, "fp32": 128},
    },
    "amd-mi300x": {
        "matrix": {"fp64": 256 / 4, "fp32": 256 / 4, "tf32": 1024 / 4, "bf16": 2048 / 4, "fp8": 4096 / 4},
        "vector": {"fp64": 128, "fp32": 256},
    },
    "amd-mi325x": {
        "matrix": {"fp64": 256 / 4, "fp32": 256 / 4, "tf32": 1024 / 4, "bf16": 2048 / 4, "fp8": 4096 / 4},
        "vector": {"fp64": 128, "fp32": 256},
    },
    "amd-mi350x": {
        "matrix": {"fp64": 128 / 4, "fp32": 256 / 4, "bf16": 4096 / 4, "fp8": 8192 / 4, "fp4": 16384 / 4},
        "vector": {"fp64": 128, "fp32": 256},
    },
    "amd-mi355x": {
        "matrix": {"fp64": 128 / 4, "fp32": 256 / 4, "bf16": 4096 / 4, "fp8": 8192 / 4, "fp4": 16384 / 4},
        "vector": {"fp64": 128, "fp32": 256},
    },
    # Google TPU: systolic arrays of 128 x 128; vector units of 8 x 128 lanes with 2 or 4 operations a clock.
    "google-tpu-v2": {"matrix": {"bf16": 2 * 128 * 128}, "vector": {"fp32": 8 * 128 * 2}},
    "google-tpu-v3": {"matrix": {"bf16": 2 * 128 * 128}, "vector": {"fp32": 8 * 128 * 2}},
    "google-tpu-v4": {"matrix": {"bf16": 2 * 128 * 128, "int8": 2 * 128 * 128}, "vector": {"fp32": 8 * 128 * 2}},
    "google-tpu-v5e": {"matrix": {"bf16": 2 * 128 * 128, "int8": 4 * 128 * 128}, "vector": {"fp32": 8 * 128 * 4}},
    # Intel: engines of 256 x 256 and vectors of 2,048 bits (Gaudi); 512-bit and 4,096-bit engines (Max, Arc: half).
    "intel-gaudi2": {
        "matrix": {"bf16": 2 * 256 * 256, "fp8": 4 * 256 * 256},
        "vector": {"bf16": 2 * 128, "fp32": 2 * 64},
    },
    "intel-gaudi3": {
        "matrix": {"bf16": 2 * 256 * 256, "fp8": 2 * 256 * 256},
        "vector": {"bf16": 2 * 128, "fp32": 2 * 64},
    },
    "intel-max-1550": {
        "matrix": {"tf32": 256, "bf16": 512, "fp16": 512, "int8": 1024},
        "vector": {"fp64": 32, "fp32": 32},
    },
    "intel-arc-pro-b60": {"matrix": {"bf16": 256, "fp16": 256, "int8": 512, "int4": 1024}, "vector": {"fp32": 32}},
    # Apple: 128 lanes in each GPU core.
    **{
        name: {"matrix": {"fp32": 256}, "vector": {"fp32": 256}}
        for name in (
            *("apple-m1-max", "apple-m1-ultra", "apple-m2-max", "apple-m2-ultra"),
            *("apple-m3-max", "apple-m3-ultra", "apple-m4-max"),
        )
    },
    # CPUs: two 512-bit multiply-adds a core and clock do 64 in fp32, two of 256 bits or four of 128 bits 32.
    "intel-xeon-8380": {"matrix": {"fp32": 64, "fp64": 32, "int8": 256}, "vector": {"fp32": 64}},
    "intel-xeon-icelake-c6i-16xlarge": {"matrix": {"fp32": 64, "fp64": 32, "int8": 256}, "vector": {"fp32": 64}},
    "intel-xeon-8480plus": {"matrix": {"fp32": 64, "bf16": 1024, "fp16": 128, "int8": 2048}, "vector": {"fp32": 64}},
    "intel-xeon-6980p": {"matrix": {"fp32": 64, "bf16": 1024, "fp16": 1024, "int8": 2048}, "vector": {"fp32": 64}},
    "intel-xeon-phi-7250": {"matrix": {"fp32": 64, "fp64": 32}, "vector": {"fp32": 64}},
    "amd-epyc-7763": {"matrix": {"fp32": 32, "fp64": 16}, "vector": {"fp32": 32}},
    "amd-epyc-9654": {"matrix": {"fp32": 32, "fp64": 16, "bf16": 64}, "vector": {"fp32": 32}},
    "amd-epyc-9965": {"matrix": {"fp32": 64, "fp64": 32, "bf16": 128, "int8": 256}, "vector": {"fp32": 64}},
    "aws-graviton3": {"matrix": {"fp32": 32, "fp64": 16, "bf16": 128, "int8": 256}, "vector": {"fp32": 32}},
    "aws-graviton4": {"matrix": {"fp32": 32, "fp64": 16, "bf16": 128, "int8": 256}, "vector": {"fp32": 32}},
    "nvidia-grace": {"matrix": {"fp32": 32, "fp64": 16, "bf16": 128, "int8": 256}, "vector": {"fp32": 32}},
    "generic-desktop-cpu": {"matrix": {"fp32": 32, "fp64": 16}, "vector": {"fp32": 32}},
    # FPGAs: of an AI Engine tile, a tensor block, a DSP block.
    "amd-vck5000": {"matrix": {"int8": 256, "fp32": 16}},
    "intel-stratix-10-nx-2100": {"matrix": {"int8": 60, "int4": 120, "fp32": 2}},
    "intel-agilex-7-m-agm039": {"matrix": {"fp32": 2, "bf16": 4, "int8": 8}},
}

#: device -> (bits of its main memory's bus, Gbit/s a pin).
BUSES: dict[str, tuple[int, float]] = {
    "amd-mi100": (4096, 2.4),
    "amd-mi210": (4096, 3.2),
    "amd-mi250x": (8192, 3.2),
    "amd-mi300x": (8192, 5.2),
    "amd-mi325x": (8192, 6.0),
    "amd-mi350x": (8192, 8.0),
    "amd-mi355x": (8192, 8.0),
    "intel-arc-pro-b60": (192, 19.0),
    "intel-max-1550": (8192, 3.2),
    "apple-m1-max": (512, 6.4),
    "apple-m1-ultra": (1024, 6.4),
    "apple-m2-max": (512, 6.4),
    "apple-m2-ultra": (1024, 6.4),
    "apple-m3-max": (512, 6.4),
    "apple-m3-ultra": (1024, 6.4),
    "apple-m4-max": (512, 8.533),
    "intel-xeon-8380": (8 * 64, 3.2),
    "intel-xeon-icelake-c6i-16xlarge": (8 * 64, 3.2),
    "intel-xeon-8480plus": (8 * 64, 4.8),
    "intel-xeon-6980p": (12 * 64, 8.8),
    "amd-epyc-7763": (8 * 64, 3.2),
    "amd-epyc-9654": (12 * 64, 4.8),
    "amd-epyc-9965": (12 * 64, 6.4),
    "aws-graviton3": (8 * 64, 4.8),
    "aws-graviton4": (12 * 64, 5.6),
    "generic-desktop-cpu": (2 * 64, 5.6),
}
