"""Which measured products are fitted, with which formula, and where their constants are kept."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfmodel.calibrate.matmul import MatmulRows
from perfmodel.hardware import load_device
from perfmodel.timing.matmul import MatmulModel, Products, model_of

__all__ = ["CITATIONS", "DATA", "POOLED", "Table", "Target", "read_table", "targets"]

Floats = npt.NDArray[np.float64]

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "kernels" / "gemm.csv.gz"

_LARGE = ("rate", "bandwidth", "cache", "launch", "throttle")
_SIMT = ("rate", "bandwidth", "cache", "throttle", "gap")
#: Copies of the operands that the replayed graphs go through: outside_loop_count of collector/vllm/collect_gemm.py.
_REPLAYED = 6.0

CITATIONS = {
    f"kernels-{key}": f'{{title: "{title}; fitted by validate/kernels", url: "{url}"}}'
    for key, title, url in (
        (
            "aiconfigurator",
            "NVIDIA ai-dynamo/aiconfigurator, measured kernel tables",
            "https://github.com/ai-dynamo/aiconfigurator",
        ),
        ("vidur", "microsoft/vidur, profiled layers", "https://github.com/microsoft/vidur"),
        ("neusight", "sitar-lab/NeuSight, measured kernels", "https://github.com/sitar-lab/NeuSight"),
        ("deepbench", "Baidu DeepBench, measured products", "https://github.com/baidu-research/DeepBench"),
        ("llmservingsim", "LLMServingSim, profiled layers", "https://github.com/casys-kaist/LLMServingSim"),
        ("aiter", "ROCm/aiter, tuned products", "https://github.com/ROCm/aiter"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of the file, as columns."""

    device: npt.NDArray[np.str_]
    dtype: npt.NDArray[np.str_]
    op: npt.NDArray[np.str_]
    kernel: npt.NDArray[np.str_]
    sizes: Floats
    time: Floats


def read_table(path: Path = DATA) -> Table:
    """Read the measured products; ``sizes`` is [rows, (b, m, n, k)], ``time`` in seconds."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Table(
        device=np.array([row["device"] for row in rows]),
        dtype=np.array([row["dtype"] for row in rows]),
        op=np.array([row["op"] for row in rows]),
        kernel=np.array([row["kernel"] for row in rows]),
        sizes=np.array([[float(row[name]) for name in "bmnk"] for row in rows]),
        time=np.array([float(row["latency_us"]) for row in rows]) * 1e-6,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Rows of one device, type and op.

    Attributes
    ----------
    device, dtype, op : str
        As the table has them.
    model : str
        The formula.
    names : tuple of str
        Constants that are fitted.
    source : str
        Of the rows.
    file : str
        Device or base whose file keeps the constants.
    fixed : mapping of str to float
        Constants with a given value; ``launch`` of 0 means that of the device's calibration.
    copies : float, optional
        Sets of operands that the measuring program goes through.
    bar : float
        Percent; the greatest error asked for.
    what : str
        How the rows were measured.
    """

    device: str
    dtype: str
    model: str
    names: tuple[str, ...]
    source: str
    file: str
    what: str
    bar: float
    op: str = "linear"
    fixed: dict[str, float] = field(default_factory=dict)
    copies: float | None = None

    @property
    def family(self) -> str:
        """The family of kernels."""
        return "batched_matmul" if self.op == "bmm" else "matmul"

    @property
    def name(self) -> str:
        """Device, type and op in words."""
        return f"{self.device} {self.dtype} {self.op}"

    def known(self) -> dict[str, float]:
        """The constants that aren't fitted."""
        device = load_device(self.device)
        clock = device.compute["vector"].clock
        known = dict(self.fixed)
        if known.get("launch") == 0.0 and clock is not None:
            known["launch"] = device.constants("matmul").latency * clock
        return known

    def formula(self) -> MatmulModel:
        """The formula with what it needs of the device."""
        return model_of(load_device(self.device), self.dtype, self.model)

    def mask(self, table: Table) -> npt.NDArray[np.bool_]:
        """Its rows in the table."""
        return (table.device == self.device) & (table.dtype == self.dtype) & (table.op == self.op)

    def rows(self, table: Table) -> MatmulRows:
        """Its rows."""
        mask = self.mask(table)
        b, m, n, k = table.sizes[mask].T
        return MatmulRows(products=Products(b=b, m=m, n=n, k=k, copies=self.copies), time=table.time[mask])


_A100, _H100, _B200, _L40S = "nvidia-a100-sxm-80gb", "nvidia-h100-sxm-80gb", "nvidia-b200", "nvidia-l40s"
_ARC = "intel-arc-pro-b60"
_GRAPH = "aiconfigurator, replayed graphs"
_VLLM = "aiconfigurator, vLLM in replayed graphs, with the quantization of the input"


def targets() -> Sequence[Target]:
    """Everything that is fitted."""
    menus = {
        _A100: ("cublas-ampere", ("fill",), "gpu-ga100", 9.0),
        _H100: ("cublas-hopper", ("store",), "gpu-hopper", 9.0),
        _B200: ("cublas-blackwell", ("split",), "gpu-blackwell", 9.0),
        _L40S: ("cublas-ada", ("fill",), "gpu-ada", 12.0),
    }
    found = [
        Target(
            device=device,
            dtype="bf16",
            model=f"tiles/{menu}",
            names=_LARGE + more,
            source="aiconfigurator",
            file=file,
            copies=_REPLAYED,
            bar=bar,
            what=_GRAPH,
        )
        for device, (menu, more, file, bar) in menus.items()
    ]
    found += [
        Target(
            device=device,
            dtype="fp16",
            model="tiles/cublas-ampere",
            names=(*_LARGE, "store"),
            source="vidur",
            file=file,
            bar=9.0,
            what="vidur, profiled kernels of PyTorch",
        )
        for device, file in ((_A100, "gpu-ga100"), (_H100, "gpu-hopper"))
    ]
    found += [
        Target(
            device=device,
            dtype=dtype,
            model=f"tiles/{menu}",
            names=names,
            source="aiconfigurator",
            file=file,
            copies=copies,
            bar=13.0,
            what=_VLLM,
        )
        for device, dtype, menu, names, file, copies in (
            (_H100, "fp8", "cutlass-scaled-sm90", _LARGE, "gpu-hopper", _REPLAYED),
            (_H100, "fp8_block", "deepgemm-sm90", _LARGE, "gpu-hopper", 1.0),
            (_B200, "fp8", "cutlass-scaled-sm100", (*_LARGE, "fill"), "gpu-blackwell", _REPLAYED),
            (_B200, "nvfp4", "cutlass-fp4-sm100", _LARGE, "gpu-blackwell", 1.0),
            (_L40S, "fp8", "cublas-ada", (*_LARGE, "fill"), "gpu-ada", _REPLAYED),
        )
    ]
    found.append(
        Target(
            device=_B200,
            dtype="fp8_block",
            model="tiles/cutlass-blockwise-sm100",
            names=("rate", "bandwidth", "cache", "throttle", "fill", "gap"),
            fixed={"launch": 0.0},
            source="aiconfigurator",
            file="gpu-blackwell",
            copies=1.0,
            bar=13.0,
            # use_cuda_graph is off for this type in collector/vllm/collect_gemm.py.
            what="aiconfigurator, vLLM without a graph, with the quantization of the input",
        )
    )
    found += [
        Target(
            device=_ARC,
            dtype=dtype,
            model="tiles/xe2",
            names=("rate", "bandwidth", "cache", "launch", "throttle", "floor"),
            source="aiconfigurator",
            file=_ARC,
            copies=_REPLAYED,
            bar=15.0,
            what="aiconfigurator, calls issued one after the other",
        )
        for dtype in ("bf16", "fp8")
    ]
    found.append(
        Target(
            device="amd-mi300x",
            dtype="fp8_block",
            model="tiles/composable-kernel",
            names=(*_LARGE, "store"),
            source="aiter",
            file="gpu-cdna3",
            bar=15.0,
            what="aiter, best of tuned kernels",
        )
    )
    for device, file, batched in _FP32:
        found += [_fp32(device, file, batched, op) for op in ("linear", "bmm")]
    found += [
        Target(
            device="google-tpu-v6e",
            dtype="bf16",
            model="systolic",
            names=("rate", "bandwidth", "start"),
            source="llmservingsim",
            file="tpu",
            bar=15.0,
            what="LLMServingSim, profiled kernels of two weight shapes, each predicted from the other",
        ),
        Target(
            device="intel-xeon-phi-7250",
            dtype="fp32",
            model="packed",
            names=("rate", "bandwidth", "start"),
            source="deepbench",
            file="intel-xeon-phi-7250",
            bar=15.0,
            what="DeepBench, MKL",
        ),
    ]
    return found


_FP32 = (
    ("nvidia-a100-pcie-40gb", "gpu-ga100", "cublas-simt-batched-ampere"),
    ("nvidia-v100-pcie-32gb", "gpu-volta", "cublas-simt-batched-volta"),
    ("nvidia-p100-pcie-16gb", "gpu-pascal", "cublas-simt-batched-pascal"),
    ("nvidia-h100-sxm-80gb", "gpu-hopper", "cublas-simt-batched-hopper"),
    ("amd-mi100", "gpu-cdna", "rocblas-batched"),
)


def _fp32(device: str, file: str, batched: str, op: str) -> Target:
    plain = "rocblas" if batched.startswith("rocblas") else "cublas-simt"
    return Target(
        device=device,
        dtype="fp32",
        op=op,
        model=f"tiles/{plain if op == 'linear' else batched}",
        names=(*_SIMT, "split" if op == "linear" else "fill"),
        # Several blocks are on a multiprocessor at once, so that one writes while another computes.
        fixed={"launch": 0.0, "store": 0.0},
        source="neusight",
        file=file,
        bar=10.0,
        what="NeuSight, calls that are waited for",
    )


#: What GPUs of the vendor without constants of their own inherit: one fit over these.
POOLED = (_A100, _H100, _B200, _L40S)
