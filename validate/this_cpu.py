"""The CPU at hand as a device file, from micro-benchmarks: one large product, copies, tiny ops. Never a model."""

from __future__ import annotations

import datetime
import os
import platform
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import perfmodel as pm
from perfmodel.errors import UnsupportedError
from perfmodel.units import format_quantity

__all__ = ["MICRO", "RUNTIME", "BenchmarkSizes", "device_text", "last_level_cache", "machine", "micro_benchmarks"]

RUNTIME = "cpu-eager"

#: What the micro-benchmarks give, and its dimension.
MICRO = {
    "product": "FLOP/s",
    "main memory": "bytes/s",
    "last-level cache": "bytes/s",
    "fresh memory": "bytes/s",
    "tiny vector op": "s",
    "tiny product": "s",
    "tiny attention": "s",
}

#: Seconds; what is put where an op takes no longer than its dispatch. A device file takes no zero.
_LEAST_LATENCY = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSizes:
    """What the micro-benchmarks run on.

    Attributes
    ----------
    cache : int
        Bytes of the last-level cache.
    buffer : int
        Bytes of a buffer in main memory.
    product : int
        Side of the matrices of the large product.
    calls : int
        Calls of a tiny op in one measurement.
    """

    cache: int
    buffer: int = 256 * 2**20
    product: int = 2048
    calls: int = 5_000


def last_level_cache() -> int:
    """Bytes of the last-level cache that the first CPU sees, as Linux states it.

    Raises
    ------
    UnsupportedError
        If the system doesn't say.
    """
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    if not sizes:
        raise UnsupportedError("this system doesn't state its cache sizes; give --cache, e.g. --cache '32 MiB'")
    return max(int(size.removesuffix("K")) * 1024 for size in sizes)


def machine() -> dict[str, Any]:
    """What a reader needs to know about where the numbers come from."""
    cpuinfo = Path("/proc/cpuinfo")
    fields = (
        [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line] if cpuinfo.exists() else []
    )
    info = {key.strip(): value.strip() for key, value in fields}
    prefixes = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "MKL_", "KMP_")
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "vendor": info.get("vendor_id") or "unknown",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "environment": {key: value for key, value in sorted(os.environ.items()) if key.startswith(prefixes)},
    }


def micro_benchmarks(sizes: BenchmarkSizes) -> dict[str, Callable[[], float]]:
    """A function for each of :data:`MICRO` that measures it once. Buffers are made, and touched, here."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    def rate(amount: float, call: Callable[[], object], calls: int = 1) -> Callable[[], float]:
        return lambda: amount * calls / timeit.timeit(call, number=calls)

    def time_of(call: Callable[[], object]) -> Callable[[], float]:
        return lambda: timeit.timeit(call, number=sizes.calls) / sizes.calls

    side = sizes.product
    a, b, c = random(side, side), random(side, side), random(side, side)
    source, target = random(sizes.buffer // 4), random(sizes.buffer // 4)
    # Both buffers together take half of the cache, and are too large for the level before it.
    near_source, near_target = random(sizes.cache // 16), random(sizes.cache // 16)
    vector, square, heads = random(8), random(8, 8), random(1, 1, 8, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    return {
        "product": rate(2.0 * side**3, lambda: torch.mm(a, b, out=c)),
        "main memory": rate(2.0 * sizes.buffer, lambda: target.copy_(source)),
        "last-level cache": rate(sizes.cache / 2, lambda: near_target.copy_(near_source), calls=20),
        "fresh memory": rate(2.0 * sizes.buffer, source.clone),
        "tiny vector op": time_of(lambda: vector.mul_(1.0)),
        "tiny product": time_of(lambda: torch.mm(square, square)),
        "tiny attention": time_of(lambda: attention(heads, heads, heads, is_causal=True)),
    }


def device_text(micro: Mapping[str, float], sizes: BenchmarkSizes, where: Mapping[str, Any]) -> str:
    """The machine as a device file.

    Parameters
    ----------
    micro : mapping
        By the names of :data:`MICRO`, in SI.
    sizes : BenchmarkSizes
    where : mapping
        From :func:`machine`.
    """
    dispatch = pm.load_runtime(RUNTIME).host.op

    def measured(value: float, dimension: str, note: str) -> dict[str, Any]:
        text = format_quantity(value, dimension, digits=6)
        return {"value": text, "source": "measured", "cite": "micro", "confidence": "B", "note": note}

    def assumed(value: str, note: str) -> dict[str, Any]:
        return {"value": value, "source": "assumed", "confidence": "D", "note": note}

    def constants(tiny: str, rate: dict[str, Any]) -> dict[str, Any]:
        note = f"{tiny}: {format_quantity(micro[tiny], 's', digits=3)} a call, less the runtime's cost of an op"
        return {
            "rate": rate,
            "bandwidth": measured(1.0, "fraction", "the level's bandwidth is that of a copy as PyTorch runs it"),
            "latency": measured(max(micro[tiny] - dispatch, _LEAST_LATENCY), "s", note),
        }

    product = measured(micro["product"], "FLOP/s", f"product of two {sizes.product} x {sizes.product} matrices")
    same = assumed(product["value"], "as the fp32 product; the same units")
    copied = "copy, bytes read and written"
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    content = {
        "schema": "device/1",
        "name": "this-cpu",
        "kind": "cpu",
        "vendor": where["vendor"],
        "architecture": where["cpu"],
        "year": int(where["date"][:4]),
        "validated": "only by the runs beside this file",
        "execution": "synchronous",
        "runtimes": [RUNTIME],
        "compute": {"matrix": {"peak": {"fp32": product}}, "vector": {"peak": {"fp32": same, "int32": same}}},
        "memory": [
            {
                "name": "main",
                "capacity": measured(physical, "bytes", "what the system reports"),
                "bandwidth": measured(micro["main memory"], "bytes/s", copied),
            },
            {
                "name": "last-level-cache",
                "capacity": measured(sizes.cache, "bytes", "what the system reports"),
                "bandwidth": measured(micro["last-level cache"], "bytes/s", copied),
            },
        ],
        "calibration": {
            "matmul": constants("tiny product", measured(1.0, "fraction", "the peak is a measured rate")),
            "attention": constants("tiny attention", assumed("100%", "as a large product")),
            "vector": constants("tiny vector op", assumed("25%", "as the catalogue's CPUs: no multiply-adds")),
        },
        "citations": {
            "micro": {
                "title": f"Micro-benchmarks of validate/cpu_baseline.py on {where['cpu']}, {where['threads']} threads, "
                f"torch {where['torch']}, {where['date']}"
            }
        },
    }
    return f"# This machine's CPU; year is that of the measurement.\n{_yaml(content)}"


def _yaml(content: Mapping[str, Any]) -> str:
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, _data: Any) -> bool:  # the format has no anchors
            return True

    return yaml.dump(dict(content), Dumper=Plain, sort_keys=False, width=120)
