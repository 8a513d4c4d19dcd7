"""How many matrix products a second are timed, on one core: ``python benchmarks/matmul.py [-n 1000000]``."""

from __future__ import annotations

import argparse
import time

import numpy as np

from perfmodel.hardware import load_device
from perfmodel.timing.matmul import Products, model_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1_000_000, help="products")
    count = parser.parse_args().n
    draw = np.random.default_rng(0)
    m, n, k = (draw.integers(1, 16384, count).astype(float) for _ in range(3))
    for name in ("nvidia-h100-sxm-80gb", "nvidia-a100-sxm-80gb", "nvidia-b200"):
        device = load_device(name)
        kernel = device.kernels["matmul"]["bf16"]
        model = model_of(device, "bf16", kernel.model)
        start = time.process_time()
        model.time(Products(b=np.ones(count), m=m, n=n, k=k), kernel.values)
        print(f"{name:24s} {kernel.model:26s} {count / (time.process_time() - start):12,.0f} a second")


if __name__ == "__main__":
    main()
